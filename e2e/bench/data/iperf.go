package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-net/tulle/e2e/lab"
)

// congestion is the kernel's own default, whatever this machine has: one that paces what it sends measures its timers.
const congestion = "cubic"

// report is what of iperf3's JSON counts.
type report struct {
	Error string `json:"error"`
	End   struct {
		Sent struct {
			Packets int `json:"packets"` // UDP
		} `json:"sum_sent"`
		Received struct {
			Bytes   int64   `json:"bytes"`
			Seconds float64 `json:"seconds"`
		} `json:"sum_received"`
	} `json:"end"`
}

func parse(text []byte) (report, error) {
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("iperf3 says no JSON: %w: %.200s", err, text)
	}
	if r.Error != "" {
		return r, fmt.Errorf("iperf3: %s", r.Error)
	}
	if r.End.Received.Bytes == 0 || r.End.Received.Seconds == 0 {
		return r, errors.New("iperf3: nothing was received")
	}
	return r, nil
}

func (r report) gbits() float64 {
	return float64(r.End.Received.Bytes) * 8 / 1e9 / r.End.Received.Seconds
}

// tcp measures throughput, and what CPU time it costs on both hosts together.
func tcp(streams int) probe {
	return func(ctx context.Context, p path, seconds int) ([]figure, error) {
		before := busy()
		r, err := iperf(ctx, p, seconds, "-C", congestion, "-P", strconv.Itoa(streams))
		if err != nil {
			return nil, err
		}
		cost := (busy() - before) / (float64(r.End.Received.Bytes) / 1e9)
		name := fmt.Sprintf("TCP, %d stream", streams)
		if streams > 1 {
			name += "s"
		}
		return []figure{{name, "Gbit/s", r.gbits()}, {name, "CPU s/GB", cost}}, nil
	}
}

// lost is a unit: of what was sent.
const lost = "% lost"

// udp measures how many datagrams arrive of as many as can be sent. size is in bytes; 0 for what fits the path's MTU.
func udp(size int) probe {
	return func(ctx context.Context, p path, seconds int) ([]figure, error) {
		length, name := size, fmt.Sprintf("UDP, %d bytes", size)
		if size == 0 {
			const headers = 20 + 8 // IPv4 and UDP, bytes
			length, name = p.MTU-headers, "UDP, full packets"
		}
		r, err := iperf(ctx, p, seconds, "-u", "-b", "0", "-l", strconv.Itoa(length))
		if err != nil {
			return nil, err
		}
		received := float64(r.End.Received.Bytes) / float64(length)
		loss := 100 * (1 - received/float64(r.End.Sent.Packets))
		return []figure{{name, "1,000/s", received / 1000 / r.End.Received.Seconds}, {name, lost, max(0, loss)}}, nil
	}
}

// iperf runs one transfer along a path.
func iperf(ctx context.Context, p path, seconds int, args ...string) (report, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+30*time.Second)
	defer cancel()
	server := exec.CommandContext(ctx, "iperf3", "--server", "--one-off", "--forceflush")
	words, err := server.StdoutPipe()
	if err != nil {
		return report{}, err
	}
	if err := lab.In(p.to, server.Start); err != nil {
		return report{}, err
	}
	defer server.Wait() // what goes wrong with it goes wrong with the client
	defer cancel()
	lines := bufio.NewScanner(words)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening") {
	}
	var out, errOut bytes.Buffer
	client := exec.CommandContext(ctx, "iperf3", append([]string{"--json", "--client", p.address.String(), "--time", strconv.Itoa(seconds)}, args...)...)
	client.Stdout, client.Stderr = &out, &errOut
	failed := lab.In(p.from, client.Run)
	r, err := parse(out.Bytes())
	if failed != nil && err == nil {
		err = fmt.Errorf("iperf3: %w: %s", failed, strings.TrimSpace(errOut.String()))
	}
	return r, err
}

// busy is the time that all CPUs together have been working since the machine started, seconds (proc_stat(5)).
func busy() float64 {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	const idle, iowait, steal, perSecond = 4, 5, 8, 100
	sum := 0.0
	for n, field := range strings.Fields(line) {
		ticks, _ := strconv.ParseFloat(field, 64)
		if n > 0 && n < steal && n != idle && n != iowait {
			sum += ticks / perSecond
		}
	}
	return sum
}
