package main

import (
	"context"
	"net"

	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
)

// goZero is core/discov, by which go-zero's zRPC servers and clients find each other.
type goZero struct{ etcd []string }

func newGoZero(etcd string) (library, error) {
	logx.Disable()
	discov.TimeToLive = int64(ttl.Seconds())
	return goZero{[]string{etcd}}, nil
}

func (g goZero) register(_ context.Context, service string, address *net.TCPAddr) error {
	return discov.NewPublisher(g.etcd, service, address.String()).KeepAlive()
}

func (g goZero) watch(ctx context.Context, service string, changed func([]string)) error {
	subscriber, err := discov.NewSubscriber(g.etcd, service)
	if err != nil {
		return err
	}
	news := make(chan struct{}, 1)
	subscriber.AddListener(func() {
		select {
		case news <- struct{}{}:
		default:
		}
	})
	for {
		changed(subscriber.Values())
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
