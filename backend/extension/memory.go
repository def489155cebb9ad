package extension

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/file"
	"github.com/tulle-net/tulle/subnet"
)

// memory is what the next life must know of this one: which commands were started, and which were told of whom.
type memory struct {
	Begun *backend.Extension `json:",omitempty"`
	Told  []told
}

type told struct {
	By    *backend.Extension
	Peers []subnet.Lease
}

// recall reads the file of the life before. Of one that can't be read, nothing is known.
func (c *Carrier) recall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := read(c.File)
	if err != nil {
		c.Log.Warn("nobody knows which peers the extension's commands were told of before: those that have left meanwhile stay", "error", err)
		return
	}
	c.begun, c.settled = m.Begun, false
	for _, t := range m.Told {
		for _, l := range t.Peers {
			c.told[l.Key()] = telling{by: t.By, lease: l}
		}
	}
}

// read reads a memory. No file is none.
func read(path string) (m memory, err error) {
	const most = 256 << 20 // bytes; of ten thousand peers with 8 kB each it has 80 MB
	text, err := file.Read(path, most)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		m, err = parse(text)
	}
	if err != nil {
		return memory{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func parse(text []byte) (m memory, err error) {
	if err := json.Unmarshal(text, &m); err != nil {
		return memory{}, err
	}
	for _, t := range m.Told {
		if t.By == nil {
			return memory{}, errors.New("it does not say whom peers were told to")
		}
	}
	return m, nil
}

// remember writes the file, or removes one that says nothing. It lets go of mu meanwhile. Peers are carried all the same if it can't.
func (c *Carrier) remember() {
	m := c.memory()
	c.mu.Unlock()
	defer c.mu.Lock()
	err := m.write(c.File)
	if err != nil && !c.forgetful {
		c.Log.Warn("peers that leave while no agent runs will not be taken from the extension's commands", "error", err)
	}
	c.forgetful = err != nil
}

func (m memory) write(path string) error {
	if m.Begun == nil && len(m.Told) == 0 {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return file.Replace(path, text, 0o600) // a command may have a password in it
}

// memory is what is known now. Nearly all peers were told to the same commands.
func (c *Carrier) memory() memory {
	m, index := memory{Begun: c.begun}, map[*backend.Extension]int{}
	for _, t := range c.told {
		i, known := index[t.by]
		if !known {
			i = len(m.Told)
			index[t.by], m.Told = i, append(m.Told, told{By: t.by})
		}
		m.Told[i].Peers = append(m.Told[i].Peers, t.lease)
	}
	return m
}
