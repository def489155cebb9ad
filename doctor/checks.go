package doctor

// Checks returns all checks, in the order of their findings. A new one is a line here, its Find, a line in
// docs/troubleshooting.md and a test.
func Checks() []Check {
	return []Check{
		{"agent", "an agent answers", nil, noAgent},
		{"agent-not-ready", "the agent is ready", []Part{PartAgent}, notReady},
		{"agent-warning", "the agent has nothing to warn of", []Part{PartAgent}, warnings},
		{"etcd", "all of etcd's members answer", []Part{PartEtcd}, etcdLost},
		{"clock", "etcd's clocks agree with this host's", []Part{PartEtcd}, clocks},
		{"lease-lost", "etcd has this host's lease", []Part{PartNetwork, PartEtcd}, leaseLost},
		{"lease-expiring", "the lease is renewed in time", []Part{PartNetwork, PartEtcd}, leaseExpiring},
		{"duplicate-public-ip", "no two leases have one public address", []Part{PartNetwork}, duplicateAddresses},
		{"duplicate-mac", "no two leases have one VTEP MAC", []Part{PartNetwork}, duplicateMACs},
		{"duplicate-key", "no two leases have one WireGuard key", []Part{PartNetwork}, duplicateKeys},
		{"left-out", "every lease is used", []Part{PartNetwork}, leftOut},

		{"kernel-module", "the kernel has what the backend needs", []Part{PartNetwork, PartKernel}, noModule},
		{"kernel-nexthops", "the kernel has nexthop objects", []Part{PartKernel}, noNexthops},
		{"flanneld", "flanneld is gone from this host", []Part{PartHost, PartPrograms, PartNetwork}, flanneld},
		{"device-clash", "no other device has what the overlay's needs", []Part{PartNetwork, PartHost}, deviceClash},
		{"udp-port-taken", "no program has the overlay's UDP port", []Part{PartNetwork, PartPrograms}, portTaken},
		{"overlay-device", "the overlay's device is there, up and as planned", []Part{PartNetwork, PartHost, PartPrograms}, overlayDevice},
		{"overlay-address", "the overlay's devices have their addresses, and no other device on a segment has them", []Part{PartNetwork, PartHost}, overlayAddress},
		{"ipv6-off", "IPv6 is not switched off on a device that needs it", []Part{PartNetwork, PartHost}, familyOff},
		{"router-advertisements", "the host listens to the router that it has its IPv6 address from", []Part{PartNetwork, PartHost}, routerLost},
		{"wrong-interface", "the overlay is on the device that leads to the peers", []Part{PartNetwork, PartHost}, wrongInterface},
		{"overlapping-routes", "nobody else routes the overlay's range, or the peers", []Part{PartNetwork, PartHost, PartPaths}, overlappingRoutes},
		{"not-programmed", "what leads to the peers is in the kernel", []Part{PartNetwork, PartHost, PartPaths}, notProgrammed},

		{"bridge-address", "the bridge has the lease's address", []Part{PartNetwork, PartHost, PartPrograms}, bridgeAddress},
		{"live-restore", "Docker has no address from before", []Part{PartNetwork, PartHost, PartPrograms}, liveRestore},
		{"docker-options", "dockerd runs with what the env file says", []Part{PartPrograms, PartEnv}, dockerOptions},

		{"ip-forward", "the kernel forwards packets", []Part{PartHost}, forwardingOff},
		{"forward-drop", "the packet filter accepts the overlay's packets", []Part{PartNetwork, PartFilter, PartForward}, forwardDrop},
		{"forward-shadowed", "no rule drops them before they are accepted", []Part{PartNetwork, PartFilter, PartForward}, forwardShadowed},
		{"docker-raw-drop", "nor does Docker in table raw", []Part{PartNetwork, PartFilter, PartRaw}, rawDrop},
		{"br-netfilter", "packets between this host's containers are let through", []Part{PartNetwork, PartHost, PartFilter, PartBridged}, brNetfilter},
		{"rp-filter", "the reverse path filter drops nothing that should come in", []Part{PartNetwork, PartHost, PartFilter, PartPaths}, rpFilter},
		{"overlay-filtered", "this host's packet filter lets pass what carries the overlay's packets", []Part{PartNetwork, PartFilter, PartOuter}, outerFiltered},

		{"mtu-containers", "containers' packets fit into the overlay", []Part{PartNetwork, PartHost, PartPrograms}, mtuContainers},
		{"mtu-underlay", "the overlay's packets fit into the underlay", []Part{PartNetwork, PartHost}, mtuUnderlay},
		{"mtu-path", "packets of full size get through to the peers", []Part{PartNetwork, PartHost, PartLong}, mtuPath},
		{"checksum-offload", "packets arrive with a right checksum", []Part{PartNetwork, PartChecksum}, checksumOffload},
		{"overlay-blocked", "peers that are up answer over the overlay", []Part{PartNetwork, PartHost, PartPaths}, outerBlocked},
		{"no-handshake", "WireGuard's peers shake hands", []Part{PartNetwork, PartHost, PartPaths}, noHandshake},
		{"peer-down", "all peers are up", []Part{PartNetwork, PartPaths}, peerDown},
	}
}

// one is the only finding.
func one(what, evidence, fix string) []Finding {
	return []Finding{{What: what, Evidence: evidence, Fix: fix}}
}
