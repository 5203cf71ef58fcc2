package main

import (
	"context"
	"net"
	"net/url"

	"github.com/go-kratos/kratos/contrib/registry/etcd/v2"
	"github.com/go-kratos/kratos/v2/registry"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// kratos is Kratos's contrib/registry/etcd.
type kratos struct{ registry *etcd.Registry }

func newKratos(endpoint string) (library, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return nil, err
	}
	return kratos{etcd.New(client, etcd.RegisterTTL(ttl))}, nil
}

func (k kratos) register(ctx context.Context, service string, address *net.TCPAddr) error {
	return k.registry.Register(ctx, &registry.ServiceInstance{
		ID:        "kratos-1",
		Name:      service,
		Version:   "v1",
		Metadata:  map[string]string{"zone": "z1"},
		Endpoints: []string{"grpc://127.0.0.1:1?isSecure=false", "http://" + address.String() + "?isSecure=false"},
	})
}

func (k kratos) watch(ctx context.Context, service string, changed func([]string)) error {
	watcher, err := k.registry.Watch(ctx, service)
	if err != nil {
		return err
	}
	for {
		instances, err := watcher.Next()
		if err != nil {
			return err
		}
		var addresses []string
		for _, instance := range instances {
			for _, endpoint := range instance.Endpoints {
				if parsed, err := url.Parse(endpoint); err == nil && parsed.Scheme == "http" {
					addresses = append(addresses, parsed.Host)
				}
			}
		}
		changed(addresses)
	}
}
