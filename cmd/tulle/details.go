package main

// What the commands do, beyond the line that each has in the list of all: for --help, the man pages and docs/cli.md.

// Help is the command's longer description.
func (agentCmd) Help() string {
	return `It leases a subnet from etcd, sets up the bridge and the way to all peers, writes the env file that Docker is started with, and keeps all of
it as it should be until it is stopped: then the network stays as it is. It needs the capabilities CAP_NET_ADMIN and CAP_NET_RAW.`
}

// Help is the command's longer description.
func (statusCmd) Help() string {
	return `It asks the agent. Of more than thirty peers it lists those that are not well, or all with --wide.`
}

// Help is the command's longer description.
func (doctorCmd) Help() string {
	return `It checks the host, its agent, etcd, and the way to its peers, and changes nothing. Each finding has the evidence and the fix. Run it at both
ends: what a host drops, only that host can name. Where no agent runs, it works out from etcd what one would do, so give it the agent's
etcd flags.`
}

// Help is the command's longer description.
func (traceCmd) Help() string {
	return `It holds each hop against what the kernel and etcd have, and changes nothing. The first hop that is wrong says why, and what to do.`
}

// Help is the command's longer description.
func (configCmd) Help() string {
	return `The config is JSON, with flannel's keys and some of tulle's own; docs/config.md lists them. Agents take a new one while they run.`
}

// Help is the command's longer description.
func (leaseCmd) Help() string {
	return `A lease ends a day after its agent was last heard of. A reservation has no end.`
}

// Help is the command's longer description.
func (etcdCmd) Help() string {
	return `The flags are etcd's own, of which it has many more; with --config-file it takes all of them.`
}

// Help is the command's longer description.
func (dockerOptsCmd) Help() string {
	return `It takes flannel's mk-docker-opts.sh's place, with its flags, and knows what each version of dockerd takes.`
}

// Help is the command's longer description.
func (attachCmd) Help() string {
	return `It is for containers that Docker gave no network, or another one. The agent must have been started with --attach-addresses, and Docker after it.
With the container's network the interface goes away; attach it anew after docker start.`
}

// Help is the command's longer description.
func (cleanupCmd) Help() string {
	return `That is: what has the marks by which a restarted agent knows its own. Stop the agent first. The lease in etcd is left to expire; tulle lease
release gives it back at once.`
}
