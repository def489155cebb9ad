package udp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
)

// errGone is why a datapath ends whose device was deleted.
var errGone = errors.New("the device was deleted")

// datapath carries packets between a TUN device and peers.
type datapath struct {
	table   *table
	count   *counters
	device  *device
	sockets []*net.UDPConn // one for each queue of the device
}

// openDatapath opens all that a datapath needs, in the calling thread's network namespace. Peers' datagrams come to local.
func openDatapath(name string, local netip.AddrPort, queues int, t *table, c *counters) (*datapath, error) {
	sockets, err := listen(local, queues) // first: it fails if there is another agent, whose device this would be
	if err != nil {
		return nil, err
	}
	device, err := openDevice(name, queues)
	if err != nil {
		return nil, errors.Join(err, closeAll(sockets))
	}
	return &datapath{t, c, device, sockets}, nil
}

// run carries packets until ctx ends, and returns nil then. It closes the datapath; the device stays.
func (d *datapath) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, closeAll(d.device.queues), closeAll(d.sockets)) }()
	tasks, running := errgroup.WithContext(ctx)
	for n, socket := range d.sockets {
		tasks.Go(func() error { return d.newSender(d.device.queues[n], socket).run() })
		tasks.Go(func() error { return d.newReceiver(socket, d.device.queues[n]).run() })
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
	for n, socket := range d.sockets {
		errs = append(errs, socket.SetDeadline(time.Unix(1, 0)), d.device.queues[n].SetDeadline(time.Unix(1, 0)))
	}
	return errors.Join(errs...)
}
