#!/bin/sh
# A node of the lab: an agent, and behind its bridge a container, which is all that Docker would make of one here: a process
# in a network namespace of its own, plugged into docker0 as the env file says.
set -eu

plug_container() {
	until wget -q -O /dev/null http://127.0.0.1:9494/readyz 2>/dev/null; do sleep 0.1; done
	. /run/tulle/subnet.env
	gateway=${FLANNEL_SUBNET%/*}
	# Busybox has no `ip netns`: the namespace is known by the process in it.
	unshare -n sleep infinity &
	pid=$!
	until [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
	ip link add name container type veth # and its other end, which the kernel calls veth0
	ip link set veth0 netns "$pid"
	ip link set container master docker0 mtu "$FLANNEL_MTU" up
	nsenter -t "$pid" -n sh -ec "
		ip link set lo up
		ip link set veth0 name eth0
		ip link set eth0 mtu $FLANNEL_MTU up
		ip addr add ${gateway%.*}.2/${FLANNEL_SUBNET#*/} dev eth0
		ip route add default via $gateway"
	echo "$pid" >/run/container.pid # the last step: the health check looks for it
	wait
}

plug_container &
# There is no iptables in this image: the agent makes its rules by nftables, which takes no program.
exec tulle agent
