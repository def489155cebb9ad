package api

import (
	"time"

	"github.com/tulle-net/tulle/subnet"
)

// Stored is an entry as it is stored under key; without a value, if that can't be read.
func Stored(key string, e subnet.Entry) StoredLease {
	l := StoredLease{Key: key, Created: e.Created, Reserved: e.Reserved}
	if e.Err != nil {
		l.LeftOut = e.Err.Error()
	} else {
		l.Value = string(e.Lease.MarshalValue())
	}
	return l
}

// Looked is what etcd said when it was asked for key, and err why it said nothing.
func Looked(look subnet.Look, key string, err error) Etcd {
	e := Etcd{API: Version, Endpoints: []EtcdEndpoint{}, Revision: look.Revision, TTL: look.TTL.Seconds()}
	if err != nil {
		e.Error = err.Error()
	}
	for _, m := range look.Members {
		endpoint := EtcdEndpoint{URL: m.URL, Version: m.Version, Took: m.Took.Seconds(), Clock: m.Clock.Round(time.Second).Seconds()}
		if m.Err != nil {
			endpoint.Error = m.Err.Error()
		}
		e.Endpoints = append(e.Endpoints, endpoint)
	}
	if look.Entry != nil {
		l := Stored(key, *look.Entry)
		e.Lease = &l
	}
	return e
}
