package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func watch(ctx context.Context, socket string) error {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		return err
	}
	defer client.Close()
	ended := make(chan error)
	go func() { ended <- client.WatchX509Context(ctx, watcher{}) }()
	go func() { ended <- client.WatchX509Bundles(ctx, watcher{}) }()
	go func() { ended <- x509Source(ctx, socket) }()
	go func() { ended <- bundleSource(ctx, socket) }()
	return <-ended // none of them ends before the context does
}

// watcher tells what the two watchers of go-spiffe's client learn. It repeats them by itself after an error.
type watcher struct{}

func (watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	bundle, _ := update.Bundles.Get(domain)
	tellState("go-spiffe WatchX509Context", update.DefaultSVID(), bundle)
}

func (watcher) OnX509BundlesUpdate(set *x509bundle.Set) {
	bundle, _ := set.Get(domain)
	tellState("go-spiffe WatchX509Bundles", nil, bundle)
}

func (watcher) OnX509ContextWatchError(err error) { note("go-spiffe WatchX509Context", err) }
func (watcher) OnX509BundlesWatchError(err error) { note("go-spiffe WatchX509Bundles", err) }

// note is for people who look for the cause of a failure: a watch that is interrupted by a restart is none.
func note(client string, err error) { tell(map[string]any{"note": client + ": " + err.Error()}) }

func x509Source(ctx context.Context, socket string) error {
	source, err := workloadapi.NewX509Source(ctx, at(socket))
	if err != nil {
		return fmt.Errorf("NewX509Source: %w", err)
	}
	defer source.Close()
	for err == nil {
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		bundle, err := source.GetX509BundleForTrustDomain(domain)
		if err != nil {
			return err
		}
		tellState("go-spiffe X509Source", svid, bundle)
		if err := source.WaitUntilUpdated(ctx); err != nil {
			return err
		}
	}
	return err
}

func bundleSource(ctx context.Context, socket string) error {
	source, err := workloadapi.NewBundleSource(ctx, at(socket))
	if err != nil {
		return fmt.Errorf("NewBundleSource: %w", err)
	}
	defer source.Close()
	for {
		bundle, err := source.GetX509BundleForTrustDomain(domain)
		if err != nil {
			return err
		}
		tellState("go-spiffe BundleSource", nil, bundle)
		if err := source.WaitUntilUpdated(ctx); err != nil {
			return err
		}
	}
}

// bundlesOnly is for a key in the TPM.
func bundlesOnly(ctx context.Context, socket string) error {
	limited, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	without := make(chan error, 2)
	go func() {
		_, err := workloadapi.NewX509Source(limited, at(socket))
		without <- err
	}()
	go func() {
		_, err := workloadapi.NewBundleSource(limited, at(socket))
		without <- err
	}()
	for range 2 {
		if err := <-without; !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("a source that needs the key ends otherwise than with its context: %v", err)
		}
	}
	tell(map[string]any{"client": "go-spiffe sources without a key", "waited": true})
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		return err
	}
	defer client.Close()
	return client.WatchX509Bundles(ctx, watcher{})
}

const crowdSize = 500

// crowd tells once when all of its clients have the bundle.
func crowd(ctx context.Context, socket string) error {
	ended := make(chan error)
	member := &member{update: make(chan struct{})}
	for range crowdSize {
		client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+socket))
		if err != nil {
			return err
		}
		defer client.Close()
		go func() { ended <- client.WatchX509Bundles(ctx, member) }()
	}
	for range crowdSize {
		select {
		case err := <-ended:
			return err
		case <-member.update:
		}
	}
	tell(map[string]any{"client": "crowd", "watching": crowdSize})
	return <-ended
}

// member is each client of a crowd.
type member struct{ update chan struct{} }

func (m *member) OnX509BundlesUpdate(*x509bundle.Set) { m.update <- struct{}{} }
func (*member) OnX509BundlesWatchError(err error)     { note("crowd", err) }

// svids tells all the SVIDs of one response, in its order, with their hints.
func svids(ctx context.Context, socket string) error {
	all, err := workloadapi.FetchX509SVIDs(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		return fmt.Errorf("FetchX509SVIDs: %w", err)
	}
	list := []any{}
	for _, svid := range all {
		list = append(list, []any{svid.ID.String(), svid.Hint})
	}
	tell(map[string]any{"client": "go-spiffe FetchX509SVIDs", "svids": list})
	<-ctx.Done()
	return nil
}
