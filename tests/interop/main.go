// The other side of Waypost: programs that use the frameworks' own Go libraries, and nothing of ours.
//
//	interop LIBRARY serve ETCD SERVICE    registers itself through the library and serves HTTP until it is killed
//	interop LIBRARY watch ETCD SERVICE    prints the service's nodes, as the library knows them, whenever they change
//
// ETCD is host:port. What is printed are lines of JSON, for the driver to read.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"time"
)

// ttl is the shortest lease that keeps all of them alive on a busy machine.
const ttl = 5 * time.Second

// A library registers this process under a service's name, and tells of a service's nodes.
type library interface {
	// register puts the address into etcd and keeps it there for as long as the process lives.
	register(ctx context.Context, service string, address *net.TCPAddr) error
	// watch calls changed with all addresses of the service, at first and whenever they may have changed.
	watch(ctx context.Context, service string, changed func([]string)) error
}

// By the name of the format that Waypost calls each by.
var libraries = map[string]struct {
	open   func(etcd string) (library, error)
	module string
}{
	"grpc-naming": {newGrpcNaming, "go.etcd.io/etcd/client/v3"},
	"go-zero":     {newGoZero, "github.com/zeromicro/go-zero"},
	"kratos":      {newKratos, "github.com/go-kratos/kratos/contrib/registry/etcd/v2"},
	"kitex":       {newKitex, "github.com/kitex-contrib/registry-etcd"},
	"go-micro":    {newGoMicro, "github.com/go-micro/plugins/v4/registry/etcd"},
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 || libraries[args[0]].open == nil {
		return fmt.Errorf("usage: interop LIBRARY serve|watch ETCD SERVICE, not %q", args)
	}
	chosen := libraries[args[0]]
	lib, err := chosen.open(args[2])
	if err != nil {
		return err
	}
	switch args[1] {
	case "serve":
		return serve(context.Background(), lib, args[0], chosen.module, args[3])
	case "watch":
		return watch(context.Background(), lib, args[3])
	default:
		return fmt.Errorf("%q is neither serve nor watch", args[1])
	}
}

// serve answers every request with the library's name, in the header that the driver's load counts by too.
func serve(ctx context.Context, lib library, name, module, service string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := lib.register(ctx, service, listener.Addr().(*net.TCPAddr)); err != nil {
		return fmt.Errorf("cannot register: %w", err)
	}
	if err := print(map[string]string{"serving": listener.Addr().String(), "library": module + " " + version(module)}); err != nil {
		return err
	}
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("x-node", name)
		fmt.Fprintln(w, name)
	}))
}

// watch prints each state once, with what each node answers to a request.
func watch(ctx context.Context, lib library, service string) error {
	last := []string{"none was printed yet"}
	return lib.watch(ctx, service, func(addresses []string) {
		slices.Sort(addresses)
		if slices.Equal(addresses, last) {
			return
		}
		last = slices.Clone(addresses)
		nodes := map[string]string{}
		for _, address := range addresses {
			nodes[address] = ask(address)
		}
		if err := print(map[string]any{"nodes": nodes}); err != nil {
			os.Exit(1)
		}
	})
}

// ask gives the name that a node answers with, or what went wrong.
func ask(address string) string {
	client := http.Client{Timeout: 2 * time.Second}
	answer, err := client.Get("http://" + address + "/")
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err.Error()
	}
	return answer.Header.Get("x-node")
}

// version is that of a module which this program is built of.
func version(module string) string {
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, dependency := range build.Deps {
			if dependency.Path == module {
				return dependency.Version
			}
		}
	}
	return "unknown"
}

func print(line any) error {
	return json.NewEncoder(os.Stdout).Encode(line)
}
