package udp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// errGone is why a datapath ends whose device was deleted.
var errGone = errors.New("the device was deleted")

// datapath carries packets between a TUN device and peers.
type datapath struct {
	table   *table
	count   *counters
	device  *device
	sockets []subnet.Pair[*net.UDPConn] // for each queue of the device, one of each of the underlay's families
}

// openDatapath opens all that a datapath needs, in the calling thread's network namespace. Peers' datagrams come to local.
func openDatapath(name string, local backend.Tunnel, queues int, t *table, c *counters) (*datapath, error) {
	d := &datapath{table: t, count: c, sockets: make([]subnet.Pair[*net.UDPConn], queues)}
	for f, a := range local.Local.All() { // first: it fails if there is another agent, whose device this would be
		sockets, err := listen(netip.AddrPortFrom(a, local.Port), queues)
		if err != nil {
			return nil, errors.Join(err, d.close())
		}
		for n, socket := range sockets {
			*d.sockets[n].At(f) = socket
		}
	}
	device, err := openDevice(name, queues)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	d.device = device
	return d, nil
}

// close closes the sockets.
func (d *datapath) close() error {
	var errs []error
	for _, sockets := range d.sockets {
		for _, socket := range sockets.All() {
			errs = append(errs, socket.Close())
		}
	}
	return errors.Join(errs...)
}

// run carries packets until ctx ends, and returns nil then. It closes the datapath; the device stays.
func (d *datapath) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, closeAll(d.device.queues), d.close()) }()
	tasks, running := errgroup.WithContext(ctx)
	for n, sockets := range d.sockets {
		tasks.Go(func() error { return d.newSender(d.device.queues[n], sockets).run() })
		for _, socket := range sockets.All() {
			tasks.Go(func() error { return d.newReceiver(socket, d.device.queues[n]).run() })
		}
	}
	tasks.Go(func() error {
		<-running.Done()
		return d.interrupt()
	})
	if err := tasks.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// interrupt ends all waiting, for good.
func (d *datapath) interrupt() error {
	var errs []error
	for n, sockets := range d.sockets {
		errs = append(errs, d.device.queues[n].SetDeadline(time.Unix(1, 0)))
		for _, socket := range sockets.All() {
			errs = append(errs, socket.SetDeadline(time.Unix(1, 0)))
		}
	}
	return errors.Join(errs...)
}
