#!/usr/bin/busybox sh
# The first process: makes a small system of the kernel's root, runs the tests
# and turns the machine off. The first serial port is the kernel's console, the
# second tells this machine's user what happens.
/usr/bin/busybox mkdir -p /busybox /proc /sys /dev /run /tmp /var /root
/usr/bin/busybox --install -s /busybox
export PATH=/usr/sbin:/usr/bin:/busybox HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing
ln -s /run /var/run
ln -s /proc/self/fd /dev/fd
mount --make-rshared /
ip link set lo up
# What has to be there before it is used; the kernel loads all others itself.
for module in br_netfilter nf_conntrack sctp tun; do
    modprobe "$module" || echo "no module $module"
done

run() {
    echo "::tandem begin $1"
    program=/opt/tests/$1
    name=$1
    shift
    "$program" "$@"
    echo "::tandem end $name $?"
}

# The verifier alone takes most of a minute, for each agent.
export TANDEM_PATIENCE=10
export PROXY_AGENT_BIN=/opt/proxy-agent TANDEM_TOOLS=/opt
exec </dev/null >/dev/ttyS1 2>&1
cd /tmp || exit
echo "::tandem up"
. /opt/run.sh
echo "::tandem done"
poweroff -f
