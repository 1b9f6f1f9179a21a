// flannel with the backends that need no cloud, whose own program has all. The
// proxy under test is the only one that makes rules: no masquerading here.
package main

import (
	"context"
	"flag"
	"log"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
)

func main() {
	kubeconfig := flag.String("kubeconfig-file", "", "")
	network := flag.String("net-config-path", "", "")
	device := flag.String("iface", "", "")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	subnets, err := kube.NewSubnetManager(ctx, "", *kubeconfig, "flannel.alpha.coreos.com", *network, false)
	check(err)
	config, err := subnets.GetNetworkConfig(ctx)
	check(err)
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	check(err)
	uplink, err := ipmatch.LookupExtIface(*device, "", "", stack, ipmatch.PublicIPOpts{})
	check(err)
	way, err := backend.NewManager(ctx, subnets, uplink).GetBackend(config.BackendType)
	check(err)
	var running sync.WaitGroup
	registered, err := way.RegisterNetwork(ctx, &running, config)
	check(err)
	registered.Run(ctx)
	running.Wait()
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
