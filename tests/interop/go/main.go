// Command interop is go-spiffe and grpc-go as clients of the agent. It writes a line of JSON for each thing that it learns,
// and ends when its standard input does.
//
//	interop watch SOCKET                X509Source, BundleSource and both watchers
//	interop bundles SOCKET              the watcher of bundles; the two sources must have nothing, as the key is in the TPM
//	interop streams SOCKET              20 streams on one connection, and a call more
//	interop health SOCKET               grpc.health.v1.Health
//	interop crowd SOCKET                500 clients, each with a connection and a watcher of bundles
//	interop codes SOCKET                how calls end, once
//	interop svids SOCKET                all the SVIDs that it gets, once
//	interop serve software|tpm FOLDER   an mTLS server
//	interop page software|tpm FOLDER    an HTTPS server that demands an SVID
//	interop dial software|tpm FOLDER    one mTLS handshake after the other with each server whose address comes as a line
//	                                    on standard input
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"miaf-agent.example/go/device"
)

var domain = spiffeid.RequireTrustDomainFromString("factory.example")

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: interop watch|bundles|streams|health|crowd|codes|svids|serve|page|dial …")
		os.Exit(2)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			servers.add(lines.Text())
		}
		cancel()
	}()
	if err := run(ctx, os.Args[1], os.Args[2:]); err != nil && ctx.Err() == nil {
		tell(map[string]any{"failed": err.Error()})
		os.Exit(1)
	}
}

func run(ctx context.Context, what string, arguments []string) error {
	switch what {
	case "watch":
		return watch(ctx, arguments[0])
	case "bundles":
		return bundlesOnly(ctx, arguments[0])
	case "streams":
		return streams(ctx, arguments[0])
	case "health":
		return health(ctx, arguments[0])
	case "crowd":
		return crowd(ctx, arguments[0])
	case "codes":
		return codes(ctx, arguments[0])
	case "svids":
		return svids(ctx, arguments[0])
	case "serve":
		identity, err := open(ctx, arguments[0], arguments[1])
		if err != nil {
			return err
		}
		return serve(ctx, identity)
	case "dial":
		identity, err := open(ctx, arguments[0], arguments[1])
		if err != nil {
			return err
		}
		return dial(ctx, identity)
	case "page":
		identity, err := open(ctx, arguments[0], arguments[1])
		if err != nil {
			return err
		}
		return page(ctx, identity)
	}
	return fmt.Errorf("%q is no command", what)
}

// source is what go-spiffe's TLS configurations need.
type source interface {
	x509svid.Source
	x509bundle.Source
}

func open(ctx context.Context, key, directory string) (source, error) {
	if key == "tpm" {
		return device.Open(ctx, directory)
	}
	return workloadapi.NewX509Source(ctx, at(filepath.Join(directory, "agent.sock")))
}

func at(socket string) workloadapi.SourceOption {
	return workloadapi.WithClientOptions(workloadapi.WithAddr("unix://" + socket))
}

var writing sync.Mutex

func tell(line map[string]any) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	writing.Lock()
	defer writing.Unlock()
	fmt.Println(string(text))
}

// tellState says what this client has now.
func tellState(client string, svid *x509svid.SVID, bundle *x509bundle.Bundle) {
	line := map[string]any{"client": client}
	if svid != nil {
		line["serial"] = serial(svid.Certificates[0])
	}
	if bundle != nil {
		line["anchors"] = anchors(bundle.X509Authorities())
	}
	tell(line)
}

func serial(certificate *x509.Certificate) string { return certificate.SerialNumber.Text(16) }

func anchors(certificates []*x509.Certificate) []string {
	digests := []string{}
	for _, certificate := range certificates {
		digest := sha256.Sum256(certificate.Raw)
		digests = append(digests, hex.EncodeToString(digest[:]))
	}
	sort.Strings(digests)
	return digests
}
