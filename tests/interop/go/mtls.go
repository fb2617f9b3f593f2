package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

const (
	greeting = "hello"
	// Longer than a signature waits for an agent that restarts.
	handshakeLimit = 30 * time.Second
	pause          = 10 * time.Millisecond
)

// addresses grow as lines come in.
type addresses struct {
	mutex sync.Mutex
	list  []string
}

var servers addresses

func (a *addresses) add(address string) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.list = append(a.list, address)
}

func (a *addresses) all() []string {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return append([]string(nil), a.list...)
}

// counts are the handshakes of this process.
type counts struct {
	mutex  sync.Mutex
	done   int
	failed int
	seen   map[string]string
}

// of notes how a handshake ended, and tells of each new certificate that the other end shows.
func (c *counts) of(name string, connection *tls.Conn, err error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if err != nil {
		c.failed++
		tell(map[string]any{"failed": fmt.Sprintf("handshake, %s: %v", name, err)})
		return
	}
	c.done++
	shown := serial(connection.ConnectionState().PeerCertificates[0])
	if c.seen == nil {
		c.seen = map[string]string{}
	}
	if c.seen[name] != shown {
		c.seen[name] = shown
		tell(map[string]any{"client": name, "serial": shown})
	}
}

func (c *counts) tell() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	tell(map[string]any{"handshakes": c.done, "failures": c.failed})
}

func serve(ctx context.Context, identity source) error {
	config := tlsconfig.MTLSServerConfig(identity, identity, tlsconfig.AuthorizeMemberOf(domain))
	config.SessionTicketsDisabled = true // a resumed session would be no handshake with the identity
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	tell(map[string]any{"listening": listener.Addr().String()})
	var counts counts
	var connections sync.WaitGroup
	for {
		tcp, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		} else if err != nil {
			return err
		}
		connections.Add(1)
		go func() {
			defer connections.Done()
			defer tcp.Close()
			connection := tls.Server(tcp, config)
			counts.of("served by Go", connection, greet(connection))
		}()
	}
	connections.Wait()
	counts.tell()
	return nil
}

// greet does the handshake of the server and what comes after it.
func greet(connection *tls.Conn) error {
	if err := connection.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return err
	}
	if err := connection.Handshake(); err != nil {
		return err
	}
	if _, err := connection.Write([]byte(greeting)); err != nil {
		return err
	}
	return connection.Close()
}

// page greets over HTTPS: for programs that are no part of this one.
func page(ctx context.Context, identity source) error {
	config := tlsconfig.MTLSServerConfig(identity, identity, tlsconfig.AuthorizeMemberOf(domain))
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	tell(map[string]any{"listening": listener.Addr().String()})
	answer := func(response http.ResponseWriter, request *http.Request) {
		fmt.Fprintf(response, "%s %s\n", greeting, serial(request.TLS.PeerCertificates[0]))
	}
	return http.Serve(listener, http.HandlerFunc(answer))
}

func dial(ctx context.Context, identity source) error {
	config := tlsconfig.MTLSClientConfig(identity, identity, tlsconfig.AuthorizeMemberOf(domain))
	var counts counts
	for ctx.Err() == nil {
		for _, server := range servers.all() {
			connection, err := visit(server, config)
			counts.of("Go at "+server, connection, err)
		}
		time.Sleep(pause)
	}
	counts.tell()
	return nil
}

// visit succeeds when the server has verified the client, too: in TLS 1.3 that shows in what is read.
func visit(server string, config *tls.Config) (*tls.Conn, error) {
	dialer := net.Dialer{Timeout: handshakeLimit}
	tcp, err := dialer.Dial("tcp", server)
	if err != nil {
		return nil, err
	}
	connection := tls.Client(tcp, config)
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return nil, err
	}
	if err := connection.Handshake(); err != nil {
		return nil, err
	}
	read, err := io.ReadAll(connection)
	if err == nil && string(read) != greeting {
		err = fmt.Errorf("%q was read", read)
	}
	return connection, err
}
