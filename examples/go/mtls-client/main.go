// Command mtls-client does mTLS as this device, without access to its key: fetches a page from a
// server of the trust domain.
//
//	go run ./mtls-client /run/miaf-agent wfm.factory.example:8443 spiffe://factory.example/wfm
//
// The server is identified by its SPIFFE ID, and not by a host name: the trust bundle vouches for
// identities.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"miaf-agent.example/go/device"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: mtls-client SOCKET-DIRECTORY HOST:PORT SPIFFE-ID-OF-THE-SERVER")
		os.Exit(2)
	}
	if err := fetch(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "mtls-client:", err)
		os.Exit(1)
	}
}

func fetch(directory, server, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	identity, err := device.Open(ctx, directory)
	if err != nil {
		return err
	}
	defer identity.Close()
	expected, err := spiffeid.FromString(id)
	if err != nil {
		return err
	}
	tls := tlsconfig.MTLSClientConfig(identity, identity, tlsconfig.AuthorizeID(expected))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: tls}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server+"/", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
