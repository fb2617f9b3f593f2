// Package device is the identity of the device for go-spiffe, with a key that stays in the TPM:
// certificates and signatures come from the agent's sign.sock, the trust bundle from its Workload
// API.
//
// go-spiffe's own X509Source and BundleSource cannot be used with such a key: both use
// FetchX509SVID, whose response contains the private key.
package device

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// How long a request is retried while the agent restarts, or while too many signatures are pending.
const patience = 15 * time.Second

// Identity implements x509svid.Source and x509bundle.Source, for tlsconfig.MTLSClientConfig and
// tlsconfig.MTLSServerConfig. go-spiffe calls it at every handshake, so that a rotation needs
// nothing more.
type Identity struct {
	agent   *http.Client
	bundles *bundles
	cancel  context.CancelFunc
}

// Open waits for the trust bundle, until the context ends. The sockets are in the directory,
// usually /run/miaf-agent.
func Open(ctx context.Context, directory string) (*Identity, error) {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+filepath.Join(directory, "agent.sock")))
	if err != nil {
		return nil, err
	}
	watched, cancel := context.WithCancel(context.Background())
	bundles := &bundles{first: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		bundles.err = client.WatchX509Bundles(watched, bundles)
		close(bundles.ended)
		client.Close()
	}()
	select {
	case <-bundles.first:
	case <-bundles.ended:
		cancel()
		return nil, fmt.Errorf("the trust bundle cannot be watched: %w", bundles.err)
	case <-ctx.Done():
		cancel()
		return nil, fmt.Errorf("no trust bundle has come: %w", errors.Join(ctx.Err(), bundles.lastError()))
	}
	socket := filepath.Join(directory, "sign.sock")
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	}
	// A connection for each request: an idle limit could close a shared one at the wrong moment.
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	return &Identity{&http.Client{Transport: transport, Timeout: patience}, bundles, cancel}, nil
}

// Close ends the watch of the trust bundle.
func (i *Identity) Close() { i.cancel() }

// GetX509SVID fetches the current SVID. Its private key is a Signer.
func (i *Identity) GetX509SVID() (*x509svid.SVID, error) {
	var svid struct {
		SpiffeID            string   `json:"spiffeId"`
		Serial              string   `json:"serial"`
		CertificateChainPem []string `json:"certificateChainPem"`
	}
	if err := i.request(http.MethodGet, "/v1/svid", nil, &svid); err != nil {
		return nil, err
	}
	id, err := spiffeid.FromString(svid.SpiffeID)
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for _, text := range svid.CertificateChainPem {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, errors.New("the agent's certificate chain is not PEM")
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, certificate)
	}
	if len(chain) == 0 {
		return nil, errors.New("the agent's certificate chain is empty")
	}
	key := &Signer{identity: i, serial: svid.Serial, public: chain[0].PublicKey}
	return &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}, nil
}

// GetX509BundleForTrustDomain returns the last trust bundle from the Workload API.
func (i *Identity) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return i.bundles.current().GetX509BundleForTrustDomain(domain)
}

// Signer is the key of one SVID, used through the agent: a crypto.Signer.
type Signer struct {
	identity *Identity
	serial   string
	public   crypto.PublicKey
}

// Public returns the public key of the SVID.
func (s *Signer) Public() crypto.PublicKey { return s.public }

// Sign has the agent sign a SHA-256 digest: the key is on P-256. The serial number names the SVID:
// a rotation may have happened since its certificate was sent.
func (s *Signer) Sign(_ io.Reader, digest []byte, options crypto.SignerOpts) ([]byte, error) {
	if options.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("the device's key signs SHA-256 digests only, not %v", options.HashFunc())
	}
	request := map[string]string{
		"algorithm": "ES256", "digest": base64.StdEncoding.EncodeToString(digest), "serial": s.serial,
	}
	var signed struct {
		Signature []byte `json:"signature"` // encoding/json reads Base64
	}
	err := s.identity.request(http.MethodPost, "/v1/sign", request, &signed)
	return signed.Signature, err
}

func (i *Identity) request(method, path string, message, document any) error {
	var body []byte
	if message != nil {
		var err error
		if body, err = json.Marshal(message); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		again, err := i.requestOnce(method, path, body, document)
		if err == nil || !again || time.Now().After(deadline) {
			return err
		}
	}
}

// requestOnce also returns whether the same request may succeed a little later.
func (i *Identity) requestOnce(method, path string, body []byte, document any) (again bool, err error) {
	request, err := http.NewRequest(method, "http://miaf-agent"+path, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	response, err := i.agent.Do(request)
	if err != nil {
		return true, fmt.Errorf("the agent cannot be reached: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var problem struct {
			Detail string `json:"detail"`
			Hint   string `json:"hint"`
		}
		_ = json.NewDecoder(response.Body).Decode(&problem)
		again = response.StatusCode == http.StatusTooManyRequests || response.StatusCode == http.StatusServiceUnavailable
		if problem.Hint != "" {
			problem.Hint = " (" + problem.Hint + ")"
		}
		return again, fmt.Errorf("%s %s: %s: %s%s", method, path, response.Status, problem.Detail, problem.Hint)
	}
	if err := json.NewDecoder(response.Body).Decode(document); err != nil {
		return true, fmt.Errorf("the response to %s %s ends early: %w", method, path, err)
	}
	return false, nil
}

// bundles stores the last update of a watch, which go-spiffe repeats by itself after an error.
type bundles struct {
	mutex sync.Mutex
	set   *x509bundle.Set
	last  error
	first chan struct{}
	ended chan struct{}
	err   error // once the watch has ended
}

func (b *bundles) OnX509BundlesUpdate(set *x509bundle.Set) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if b.set == nil {
		close(b.first)
	}
	b.set = set
}

func (b *bundles) OnX509BundlesWatchError(err error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.last = err
}

func (b *bundles) current() *x509bundle.Set {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.set
}

func (b *bundles) lastError() error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.last
}
