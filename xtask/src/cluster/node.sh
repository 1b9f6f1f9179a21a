#!/bin/bash
# One node of a cluster: namespaces, mounts and processes of its own.
#   node.sh start            makes the node; ends with it
#   node.sh enter COMMAND    runs a command in it
#   node.sh restart PROGRAM  in it: starts containerd or kubelet anew
# NODE_NAME, NODE_NAMESPACE and NODE_FOLDER say which node; NODE_GROUPS are its
# control groups, NODE_HIERARCHIES what they are in, as KIND:POINT.
set -eu

join_groups() {
    local group
    for group in $NODE_GROUPS; do
        echo $$ >"$group/cgroup.procs"
    done
}

# Views of the kernel that are this node's own.
mount_kernel() {
    local hierarchy point
    mount --make-rprivate /
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t bpf bpf /sys/fs/bpf
    case " $NODE_HIERARCHIES " in
        *" cgroup2:/sys/fs/cgroup "*) ;;
        *) mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup ;;
    esac
    for hierarchy in $NODE_HIERARCHIES; do
        point=${hierarchy#*:}
        mkdir -p "$point"
        case $hierarchy in
            cgroup2:*) mount -t cgroup2 cgroup2 "$point" ;;
            name=*) mount -t cgroup -o "none,${hierarchy%%:*}" cgroup "$point" ;;
            *) mount -t cgroup -o "${hierarchy%%:*}" cgroup "$point" ;;
        esac
    done
    mount -o remount,bind,ro /sys
    # In a hierarchy of the second version alone, groups with processes of
    # their own give no controllers to those below.
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        local controller
        mkdir /sys/fs/cgroup/init
        echo $$ >/sys/fs/cgroup/init/cgroup.procs
        for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
            echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
        done
    fi
}

# Of the machine's settings, those of the network are each namespace's own.
# kubelet finds the others as it would set them, and nobody changes them.
hold_settings() {
    local setting file
    mount --bind /proc/sys /proc/sys
    mount --bind /proc/sys/net /proc/sys/net
    mount -o remount,bind,ro /proc/sys
    for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 \
        kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 \
        kernel/keys/root_maxbytes=25000000; do
        file=/run/sys-$(echo "${setting%=*}" | tr / -)
        echo "${setting#*=}" >"$file"
        mount --bind "$file" "/proc/sys/${setting%=*}"
    done
}

# The machine's files are there to be read; what a node writes is its own.
mount_files() {
    # Copies of the mounts that hold other people's network namespaces.
    umount -R /run/netns 2>/dev/null || true
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/netns /run/lock /run/containerd /run/cni/net.d
    mkdir -m 1777 /run/tmp
    mount --bind "$NODE_FOLDER/lib" /var/lib
    mount --bind "$NODE_FOLDER/log" /var/log
    mkdir -p /var/lib/kubelet /var/lib/containerd /var/lib/cni
    cp "$NODE_FOLDER/pods.conflist" /run/cni/net.d/
    echo "nameserver 127.0.0.2" >/run/resolv.conf
}

start_containerd() {
    export TMPDIR=/run/tmp HOME=/run/tmp
    rm -f /run/containerd/containerd.sock
    containerd --config "$NODE_FOLDER/containerd.toml" >>/var/log/containerd.log 2>&1 </dev/null &
    until [ -S /run/containerd/containerd.sock ]; do
        kill -0 $! || exit 1
        sleep 0.2
    done
}

start_kubelet() {
    export TMPDIR=/run/tmp HOME=/run/tmp
    kubelet --kubeconfig "$NODE_FOLDER/kubeconfig" --config "$NODE_FOLDER/kubelet.json" \
        --hostname-override "$NODE_NAME" --node-ip "$NODE_ADDRESSES" --v=2 \
        >>/var/log/kubelet.log 2>&1 </dev/null &
}

launch() {
    local image
    start_containerd
    for image in "$NODE_FOLDER"/../images/*.tar; do
        ctr --namespace k8s.io images import "$image"
    done >/var/log/images.log 2>&1
    if [ -e "$NODE_FOLDER/flannel.json" ]; then
        flannel --kubeconfig-file "$NODE_FOLDER/flannel.kubeconfig" \
            --net-config-path "$NODE_FOLDER/flannel.json" --iface eth0 \
            >/var/log/flannel.log 2>&1 </dev/null &
    fi
    start_kubelet
}

# Ends containerd or kubelet and starts it anew.
restart() {
    local pid
    pid=$(pidof "$1")
    kill -KILL "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    "start_$1"
}

case $1 in
    start)
        join_groups
        exec nsenter --net="/run/netns/$NODE_NAMESPACE" -- \
            unshare --mount --uts --ipc --cgroup --pid --fork --kill-child \
            --propagation private -- bash "$0" init
        ;;
    init)
        # Opened in this process, it names it as the machine does.
        read -r pid _ </proc/self/stat
        echo "$NODE_NAME" >/proc/sys/kernel/hostname
        mount_kernel
        mount_files
        hold_settings
        echo "$pid" >"$NODE_FOLDER/pid"
        mount -o remount,bind,ro /
        mount --make-rshared /
        launch
        # Also takes note of the end of processes that nobody waits for.
        sleep infinity &
        wait $!
        ;;
    restart) restart "$2" ;;
    enter)
        shift
        join_groups
        exec nsenter --target "$(cat "$NODE_FOLDER/pid")" --mount --uts --ipc --net --pid \
            --cgroup -- "$@"
        ;;
esac
