package main

import (
	"context"
	"encoding/json"
	"net"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

const numberOfStreams = 20

// connect also counts the connections that are made.
func connect(socket string) (*grpc.ClientConn, *atomic.Int32, error) {
	var made atomic.Int32
	dialer := func(ctx context.Context, _ string) (net.Conn, error) {
		var dialer net.Dialer
		connection, err := dialer.DialContext(ctx, "unix", socket)
		if err == nil {
			made.Add(1)
		}
		return connection, err
	}
	connection, err := grpc.NewClient("passthrough:agent", grpc.WithContextDialer(dialer),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	return connection, &made, err
}

func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// update is what came on one of the streams.
type update struct {
	stream  int
	anchors []string
	err     error
}

func streams(ctx context.Context, socket string) error {
	connection, made, err := connect(socket)
	if err != nil {
		return err
	}
	defer connection.Close()
	updates := make(chan update)
	for stream := range numberOfStreams {
		go follow(ctx, connection, stream, updates)
	}
	var told string
	latest := make([]string, numberOfStreams)
	for {
		select {
		case <-ctx.Done():
			return nil
		case update := <-updates:
			text, _ := json.Marshal(update.anchors)
			latest[update.stream] = string(text)
			if update.err != nil { // it is opened again, and has to come to the others
				latest[update.stream] = update.err.Error()
				note("a stream", update.err)
				continue
			}
			alike := 0
			for _, one := range latest {
				if one == string(text) {
					alike++
				}
			}
			if alike < numberOfStreams || told == string(text) {
				continue
			}
			told = string(text)
			limited, cancel := context.WithTimeout(ctx, 10*time.Second)
			_, err := grpc_health_v1.NewHealthClient(connection).Check(limited, &grpc_health_v1.HealthCheckRequest{})
			cancel()
			tell(map[string]any{
				"client": "grpc-go, 20 streams", "anchors": update.anchors,
				"connections": made.Load(), "oneCallMore": status.Code(err).String(),
			})
		}
	}
}

// follow keeps one stream open, also through a restart of the agent.
func follow(ctx context.Context, connection *grpc.ClientConn, number int, updates chan<- update) {
	client := workload.NewSpiffeWorkloadAPIClient(connection)
	send := func(update update) {
		select {
		case updates <- update:
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		stream, err := client.FetchX509Bundles(withHeader(ctx), &workload.X509BundlesRequest{}, grpc.WaitForReady(true))
		for err == nil {
			var response *workload.X509BundlesResponse
			if response, err = stream.Recv(); err == nil {
				var bundle *x509bundle.Bundle
				bundle, err = x509bundle.ParseRaw(domain, response.Bundles[domain.IDString()])
				if err == nil {
					send(update{number, anchors(bundle.X509Authorities()), nil})
				}
			}
		}
		send(update{number, nil, err})
		time.Sleep(100 * time.Millisecond)
	}
}

func health(ctx context.Context, socket string) error {
	connection, _, err := connect(socket)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := grpc_health_v1.NewHealthClient(connection)
	for _, service := range []string{"", "SpiffeWorkloadAPI", "nothing.of.this.Name"} {
		go watchHealth(ctx, client, service)
	}
	<-ctx.Done()
	return nil
}

// watchHealth tells each status of a service that Watch has, and what Check says at that moment.
func watchHealth(ctx context.Context, client grpc_health_v1.HealthClient, service string) {
	request := &grpc_health_v1.HealthCheckRequest{Service: service}
	for ctx.Err() == nil {
		stream, err := client.Watch(ctx, request, grpc.WaitForReady(true))
		for err == nil {
			var response *grpc_health_v1.HealthCheckResponse
			if response, err = stream.Recv(); err == nil {
				line := map[string]any{"client": "grpc-go health " + service, "watch": response.Status.String()}
				if check, err := client.Check(ctx, request); err == nil {
					line["check"] = check.Status.String()
				} else {
					line["check"] = status.Code(err).String()
				}
				tell(line)
			}
		}
		note("health of "+service, err)
		time.Sleep(100 * time.Millisecond)
	}
}

// codes tells how one call each ends. A stream that begins with a message is OK.
func codes(ctx context.Context, socket string) error {
	connection, _, err := connect(socket)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := workload.NewSpiffeWorkloadAPIClient(connection)
	line := map[string]any{"client": "grpc-go codes"}
	end := func(name string, call func(context.Context) error) {
		limited, cancel := context.WithTimeout(withHeader(ctx), 20*time.Second)
		defer cancel()
		line[name] = status.Code(call(limited)).String()
	}
	end("FetchX509SVID", func(ctx context.Context) error {
		stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	})
	end("FetchX509Bundles", func(ctx context.Context) error {
		stream, err := client.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	})
	end("FetchJWTSVID", func(ctx context.Context) error {
		_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"anyone"}})
		return err
	})
	for _, method := range []string{
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/List", "/nothing/at.all",
	} {
		end(method, func(ctx context.Context) error {
			return connection.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
		})
	}
	tell(line)
	<-ctx.Done()
	return nil
}
