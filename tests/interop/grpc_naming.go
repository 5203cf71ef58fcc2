package main

import (
	"context"
	"maps"
	"net"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
)

// grpcNaming is etcd's own client/v3/naming; its resolver for gRPC's clients is a shell round what is used here.
type grpcNaming struct{ client *clientv3.Client }

func newGrpcNaming(etcd string) (library, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}})
	return grpcNaming{client}, err
}

func (g grpcNaming) register(ctx context.Context, service string, address *net.TCPAddr) error {
	manager, err := endpoints.NewManager(g.client, "grpc/"+service)
	if err != nil {
		return err
	}
	lease, err := g.client.Grant(ctx, int64(ttl.Seconds()))
	if err != nil {
		return err
	}
	alive, err := g.client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	go func() {
		for range alive {
		}
	}()
	endpoint := endpoints.Endpoint{Addr: address.String()}
	return manager.AddEndpoint(ctx, "grpc/"+service+"/1", endpoint, clientv3.WithLease(lease.ID))
}

func (g grpcNaming) watch(ctx context.Context, service string, changed func([]string)) error {
	manager, err := endpoints.NewManager(g.client, "grpc/"+service)
	if err != nil {
		return err
	}
	updates, err := manager.NewWatchChannel(ctx)
	if err != nil {
		return err
	}
	known := map[string]string{}
	changed(nil)
	for batch := range updates {
		for _, update := range batch {
			if update.Op == endpoints.Add {
				known[update.Key] = update.Endpoint.Addr
			} else {
				delete(known, update.Key)
			}
		}
		changed(slices.Collect(maps.Values(known)))
	}
	return ctx.Err()
}
