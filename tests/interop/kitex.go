package main

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/cloudwego/kitex/pkg/registry"
	etcd "github.com/kitex-contrib/registry-etcd"
)

// kitex is Kitex's registry-etcd.
type kitex struct{ etcd []string }

func newKitex(endpoint string) (library, error) {
	// The only way to tell it.
	return kitex{[]string{endpoint}}, os.Setenv("KITEX_ETCD_REGISTRY_LEASE_TTL", strconv.Itoa(int(ttl.Seconds())))
}

func (k kitex) register(_ context.Context, service string, address *net.TCPAddr) error {
	registrar, err := etcd.NewEtcdRegistry(k.etcd)
	if err != nil {
		return err
	}
	tags := map[string]string{"zone": "z1"}
	return registrar.Register(&registry.Info{ServiceName: service, Addr: address, Weight: 20, Tags: tags})
}

// Kitex's resolver has no watch: its clients resolve again at an interval, and so does this.
func (k kitex) watch(ctx context.Context, service string, changed func([]string)) error {
	resolver, err := etcd.NewEtcdResolver(k.etcd)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		// A service without nodes is an error to it.
		result, err := resolver.Resolve(ctx, service)
		var addresses []string
		if err == nil {
			for _, instance := range result.Instances {
				addresses = append(addresses, instance.Address().String())
			}
		}
		changed(addresses)
		time.Sleep(100 * time.Millisecond)
	}
	return ctx.Err()
}
