package main

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"time"

	etcd "github.com/go-micro/plugins/v4/registry/etcd"
	"go-micro.dev/v4/registry"
)

// goMicro is go-micro's plugins/v4/registry/etcd.
type goMicro struct{ registry registry.Registry }

func newGoMicro(endpoint string) (library, error) {
	return goMicro{etcd.NewRegistry(registry.Addrs(endpoint))}, nil
}

func (g goMicro) register(ctx context.Context, service string, address *net.TCPAddr) error {
	node := &registry.Node{Id: service + "-1", Address: address.String(), Metadata: map[string]string{"protocol": "http"}}
	info := &registry.Service{Name: service, Version: "latest", Nodes: []*registry.Node{node}}
	if err := g.registry.Register(info, registry.RegisterTTL(ttl)); err != nil {
		return err
	}
	// Its services register over and over (RegisterInterval), which renews the lease.
	go func() {
		for ctx.Err() == nil {
			time.Sleep(ttl / 3)
			if err := g.registry.Register(info, registry.RegisterTTL(ttl)); err != nil {
				println("cannot renew:", err.Error())
			}
		}
	}()
	return nil
}

func (g goMicro) watch(_ context.Context, service string, changed func([]string)) error {
	watcher, err := g.registry.Watch(registry.WatchService(service))
	if err != nil {
		return err
	}
	services, err := g.registry.GetService(service)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	known := map[string]string{}
	for _, version := range services {
		for _, node := range version.Nodes {
			known[node.Id] = node.Address
		}
	}
	// From here on as its own cache does: what changed is in the results. Its reads may lag behind them.
	for {
		changed(slices.Collect(maps.Values(known)))
		result, err := watcher.Next()
		if err != nil {
			return err
		}
		for _, node := range result.Service.Nodes {
			if result.Action == "delete" {
				delete(known, node.Id)
			} else {
				known[node.Id] = node.Address
			}
		}
	}
}
