package lab

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	icmpHeader = 8 // bytes
	answerWait = time.Second
)

// echo is how a family asks for an echo (RFC 792, RFC 4443).
type echo struct {
	network         string // of package net
	header          int    // of IP without options, bytes
	protocol        int
	request, reply  icmp.Type
	level, mtu, set int // socket option that keeps packets from being fragmented
}

// echoOf is how an address is asked.
func echoOf(a netip.Addr) echo {
	if a.Is4() {
		return echo{"ip4:icmp", 20, 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO}
	}
	return echo{"ip6:ipv6-icmp", 40, 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO}
}

// Flow is a stream of ICMP echo requests from a namespace to an address.
type Flow struct {
	echo
	conn  *net.IPConn
	to    *net.IPAddr
	id    int
	size  int // of the IP packet, bytes
	done  chan struct{}
	sends sync.WaitGroup
	tasks sync.WaitGroup

	mu       sync.Mutex
	sent     map[int]time.Time // by sequence number: those not answered yet
	count    int
	answered int
	trip     time.Duration // sum
	refused  error         // why the kernel would not send, the last time
}

// Result is what became of a Flow.
type Result struct {
	Sent, Answered int
	RoundTrip      time.Duration // mean
	Refused        error         // why the kernel would not send a packet, if it would not
}

// Lost is how many requests have no answer.
func (r Result) Lost() int { return r.Sent - r.Answered }

var flowID atomic.Int32

// open makes a Flow that has sent nothing yet. size is that of its IP packets in bytes; they are never fragmented.
func open(namespace string, to netip.Addr, size int) (*Flow, error) {
	f := &Flow{echo: echoOf(to), to: &net.IPAddr{IP: to.AsSlice()}, id: (os.Getpid() + int(flowID.Add(1))) & 0xffff, size: size,
		sent: map[int]time.Time{}, done: make(chan struct{})}
	err := In(namespace, func() error {
		conn, err := net.ListenIP(f.network, nil)
		if err != nil {
			return err
		}
		f.conn = conn
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		var optErr error
		err = raw.Control(func(fd uintptr) {
			optErr = unix.SetsockoptInt(int(fd), f.level, f.mtu, f.set)
		})
		return errors.Join(err, optErr)
	})
	if err != nil {
		return nil, fmt.Errorf("open an ICMP socket in %s: %w", namespace, err)
	}
	f.tasks.Go(f.receive)
	return f, nil
}

// StartFlow sends a request every interval until Stop.
func StartFlow(namespace string, to netip.Addr, interval time.Duration) (*Flow, error) {
	f, err := open(namespace, to, 84)
	if err != nil {
		return nil, err
	}
	f.sends.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-f.done:
				return
			case <-tick.C:
				f.send()
			}
		}
	})
	return f, nil
}

// Ping sends count requests of size bytes as IP packets, each when the one before has been answered, or after a while if it
// is not.
func Ping(ctx context.Context, namespace string, to netip.Addr, count, size int) (Result, error) {
	f, err := open(namespace, to, size)
	if err != nil {
		return Result{}, err
	}
	for range count {
		f.send()
		_ = f.settle(ctx) // a lost one is counted, and the next may fare better
	}
	return f.end(), nil
}

// Stop sends no more, waits for the answers that are still on their way, and returns what became of all.
func (f *Flow) Stop(ctx context.Context) Result {
	close(f.done)
	f.sends.Wait()    // or the last request may go out when nobody waits for its answer any more
	_ = f.settle(ctx) // what has no answer by then is lost
	return f.end()
}

// end stops listening and counts.
func (f *Flow) end() Result {
	f.conn.Close()
	f.tasks.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	r := Result{Sent: f.count, Answered: f.answered, Refused: f.refused}
	if f.answered > 0 {
		r.RoundTrip = f.trip / time.Duration(f.answered)
	}
	return r
}

// Sent is the number of requests sent so far.
func (f *Flow) Sent() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

func (f *Flow) settle(ctx context.Context) error {
	return Wait(ctx, answerWait, "all requests are answered", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.sent) > 0 && f.refused == nil {
			return fmt.Errorf("%d are not", len(f.sent))
		}
		return nil
	})
}

func (f *Flow) send() {
	f.mu.Lock()
	f.count++
	n := f.count
	f.sent[n&0xffff] = time.Now()
	f.mu.Unlock()
	request := icmp.Message{Type: f.request, Body: &icmp.Echo{ID: f.id, Seq: n & 0xffff, Data: make([]byte, f.size-f.header-icmpHeader)}}
	packet, err := request.Marshal(nil)
	if err == nil {
		_, err = f.conn.WriteToIP(packet, f.to)
	}
	if err != nil {
		f.mu.Lock()
		f.refused = err
		f.mu.Unlock()
	}
}

func (f *Flow) receive() {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := f.conn.ReadFromIP(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // what an ICMP error told the socket: the packet it is about is lost
			continue
		}
		m, err := icmp.ParseMessage(f.protocol, buffer[:n])
		if err != nil || m.Type != f.reply || !from.IP.Equal(f.to.IP) {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == f.id {
			f.answer(e.Seq)
		}
	}
}

func (f *Flow) answer(seq int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, waiting := f.sent[seq]; waiting {
		delete(f.sent, seq)
		f.answered++
		f.trip += time.Since(at)
	}
}

// Transferred is what became of a transfer.
type Transferred struct {
	Source  netip.Addr // of the sender, as the receiver saw it
	Took    time.Duration
	Correct bool // the receiver's checksum is the sender's
}

// Transfer sends size bytes over TCP from one namespace to an address in another, and checks what arrives.
func Transfer(ctx context.Context, from, to string, address netip.Addr, size int64) (Transferred, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var listener net.Listener
	err := In(to, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
		return err
	})
	if err != nil {
		return Transferred{}, fmt.Errorf("listen in %s: %w", to, err)
	}
	defer listener.Close()
	type received struct {
		sum    [32]byte
		source netip.Addr
		err    error
	}
	result := make(chan received, 1)
	go func() {
		var r received
		r.sum, r.source, r.err = receiveAll(listener)
		result <- r
	}()
	started := time.Now()
	var conn net.Conn
	err = In(from, func() (err error) {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", listener.Addr().String())
		return err
	})
	if err != nil {
		return Transferred{}, fmt.Errorf("connect from %s to %s: %w", from, address, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close(); listener.Close() })
	defer stop()
	sum, err := sendAll(conn, size)
	if err != nil {
		return Transferred{}, err
	}
	r := <-result
	return Transferred{r.source, time.Since(started), sum == r.sum}, r.err
}

func receiveAll(l net.Listener) (sum [32]byte, source netip.Addr, err error) {
	conn, err := l.Accept()
	if err != nil {
		return sum, source, err
	}
	defer conn.Close()
	hash := sha256.New()
	if _, err = io.Copy(hash, conn); err != nil {
		return sum, source, err
	}
	return [32]byte(hash.Sum(nil)), netip.MustParseAddrPort(conn.RemoteAddr().String()).Addr(), nil
}

func sendAll(conn net.Conn, size int64) ([32]byte, error) {
	var seed [32]byte
	binary.NativeEndian.PutUint64(seed[:], rand.Uint64())
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(conn, hash), io.LimitReader(rand.NewChaCha8(seed), size)); err != nil {
		return [32]byte{}, fmt.Errorf("send: %w", err)
	}
	return [32]byte(hash.Sum(nil)), conn.(*net.TCPConn).CloseWrite()
}
