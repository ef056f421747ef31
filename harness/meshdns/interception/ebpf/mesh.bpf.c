// SPDX-License-Identifier: Apache-2.0
/* Interception by socket hooks: what Istio's nat rules do to packets, done to sockets of one pod.
 *
 * Outbound   connect and sendmsg put the proxy's address in the place of the destination, which is kept in the socket's
 *            own storage; getpeername and recvmsg put it back for the application.
 * Hand-over  the destination reaches the proxy's accepted socket by the client's source address and port: noted when the
 *            SYN is about to leave, taken when the connection is accepted; getsockopt(SO_ORIGINAL_DST) answers from it.
 * Inbound    sk_lookup gives connections to the pod's address to the proxy's listener; nothing is translated.
 *
 * Only types of the kernel's stable interface are used: no BTF of the running kernel, no relocation. Context fields are
 * read by volatile 4-byte accesses: compilers merge neighbours into 8-byte accesses, which the verifier refuses.
 * Verdicts and their order follow Istio's istio-iptables, its faults too: see decide(), captured_self() and inbound().
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10
#define SOL_IP 0
#define SO_ORIGINAL_DST 80
#define PASS 1
#define LOCALHOST bpf_htonl(0x7f000001)
#define PASSTHROUGH_SOURCE bpf_htonl(0x7f000006) /* Envoy's inbound connections to the application come from here */
#define MAPPED bpf_htonl(0xffff)                 /* third word of ::ffff:a.b.c.d */
#define MAX_OPTION_BYTES 4096                    /* the kernel shows programs no more than a page of an option */

/* Written by the loader before the programs are loaded; settings.py packs the same layout. */
struct settings {
    __u64 netns; /* cookie of the pod's network namespace; sockets of others are let alone */
    __u32 proxy_uids[8], proxy_gids[8]; /* the first one again where there are fewer */
    __u32 local[8];                     /* the pod's own IPv4 addresses, zero where fewer */
    __u32 source;                       /* address that captured connections come from; zero: loopback */
    __u16 outbound_port, inbound_port, tunnel_port, dns_port;
    __u8 capture_dns, fail_closed;
    __u8 outbound_excluded[8192], outbound_included[8192], inbound_captured[8192]; /* a bit per port */
};
const volatile struct settings settings SEC(".rodata.settings") = {};

/* What the options say of a destination: the flags of all their ranges that hold it, as the value of the longest one. */
enum range { INCLUDED = 1, EXCLUDED = 2, DNS_SERVER = 4, EXEMPT = 8 }; /* settings.Range in Python */
struct prefix {
    __u32 length;
    __u32 address; /* network order */
};
struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 4096);
    __type(key, struct prefix);
    __type(value, __u32);
} ranges SEC(".maps");

/* Same order as settings.COUNTERS in Python. */
enum counter { REDIRECT_TCP, REDIRECT_DNS_TCP, REDIRECT_DNS_UDP, INBOUND_TCP, SELF_TCP, HANDED_OVER, PROXY_ABSENT, COUNTERS };
enum origin_kind { OUTBOUND = 1, SELF, PROXY_LISTENER };

struct origin {
    __u32 kind;
    __u32 address; /* network order */
    __u32 port;    /* network order, in the low half as the contexts have it */
};
struct end {
    __u32 address; /* network order */
    __u32 port;    /* host order */
};

struct {
    __uint(type, BPF_MAP_TYPE_SK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE); /* accepted sockets inherit their listener's mark */
    __type(key, int);
    __type(value, struct origin);
} origins SEC(".maps");

/* Connections under way, by the client's end: a few at any time. Refused ones stay until they are the oldest. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, struct end);
    __type(value, struct origin);
} handover SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_SOCKMAP);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} listener SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, COUNTERS);
    __type(key, __u32);
    __type(value, __u64);
} counters SEC(".maps");

#define READ(field) (*(volatile __u32 *)&(field))
#define WRITE(field, value) (*(volatile __u32 *)&(field) = (value))

static __always_inline void count(__u32 which)
{
    __u64 *value = bpf_map_lookup_elem(&counters, &which);
    if (value)
        __sync_fetch_and_add(value, 1); /* a program may be interrupted on its CPU by another */
}

static __always_inline int is_one_of(__u32 value, const volatile __u32 *values)
{
    return value == values[0] || value == values[1] || value == values[2] || value == values[3] ||
           value == values[4] || value == values[5] || value == values[6] || value == values[7];
}

static __always_inline int is_loopback(__u32 address)
{
    return (address & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

/* What goes there leaves by lo. */
static __always_inline int is_local(__u32 address)
{
    return is_loopback(address) || is_one_of(address, settings.local);
}

static __always_inline __u32 ranges_of(__u32 address)
{
    struct prefix whole = {.length = 32, .address = address};
    __u32 *flags = bpf_map_lookup_elem(&ranges, &whole);
    return flags ? *flags : 0;
}

static __always_inline int has(const volatile __u8 *ports, __u16 port)
{
    return ports[port >> 3] >> (port & 7) & 1;
}

static __always_inline int is_proxy(__u64 ids)
{
    return is_one_of((__u32)ids, settings.proxy_uids) || is_one_of((__u32)(ids >> 32), settings.proxy_gids);
}

static __always_inline int is_tcp(__u32 protocol)
{
    return protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP;
}

/* The proxy's port that takes what the application sends to this destination; 0: none. Istio's order: excluded ports,
 * what stays in the pod, DNS, the exempt part of loopback, excluded ranges, included ports and ranges. */
static __always_inline __u16 decide(__u32 address, __u16 port, __u32 protocol, __u32 source)
{
    int tcp = is_tcp(protocol), dns = settings.capture_dns && port == 53;
    __u32 flags;

    if (has(settings.outbound_excluded, port))
        return 0;
    if (is_local(address) && (!dns || source == PASSTHROUGH_SOURCE))
        return 0;
    if (!tcp && !dns)
        return 0;
    flags = ranges_of(address);
    if (dns && flags & DNS_SERVER) {
        if (tcp) {
            count(REDIRECT_DNS_TCP);
            return settings.dns_port;
        }
        if (protocol == IPPROTO_UDP) {
            count(REDIRECT_DNS_UDP);
            return settings.dns_port;
        }
    }
    if (!tcp || flags & (EXEMPT | EXCLUDED))
        return 0;
    if (!(flags & INCLUDED) && !has(settings.outbound_included, port))
        return 0;
    count(REDIRECT_TCP);
    return settings.outbound_port;
}

/* The proxy calls its own pod's address: the connection shall come in by the inbound listener, as any other pod's. As in
 * Istio's rules this is for the first of several users, and for a group alone only where DNS is captured, to port 53. */
static __always_inline int captured_self(__u32 address, __u16 port, __u32 protocol, __u32 source, __u32 uid)
{
    if (!is_tcp(protocol) || source == PASSTHROUGH_SOURCE || !is_local(address) || port == settings.tunnel_port ||
        has(settings.outbound_excluded, port) || ranges_of(address) & EXEMPT)
        return 0;
    if (settings.capture_dns && port == 53)
        return !is_one_of(uid, settings.proxy_uids);
    return uid == settings.proxy_uids[0];
}

static __always_inline void keep(struct bpf_sock *sk, __u32 kind, __u32 address, __u32 port)
{
    struct origin fresh = {.kind = kind, .address = address, .port = port};
    struct origin *kept = bpf_sk_storage_get(&origins, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
    if (kept)
        *kept = fresh; /* a socket that is connected anew has the old one */
}

/* Where the socket shall connect instead; 0: where it wanted. */
static __always_inline __u16 connect_target(struct bpf_sock_addr *ctx, __u32 address, __u32 port)
{
    struct bpf_sock *sk = ctx->sk;
    __u64 ids = bpf_get_current_uid_gid();
    __u32 protocol = READ(ctx->protocol);
    __u32 there = address ? address : LOCALHOST; /* as the kernel takes 0.0.0.0 */
    __u16 number = bpf_ntohs((__u16)port), target = 0;

    if (!sk)
        return 0;
    if (is_proxy(ids)) {
        if (captured_self(there, number, protocol, READ(sk->src_ip4), (__u32)ids))
            keep(sk, SELF, address, port);
        return 0;
    }
    target = decide(there, number, protocol, READ(sk->src_ip4));
    if (target)
        keep(sk, OUTBOUND, address, port);
    else
        bpf_sk_storage_delete(&origins, sk);
    return target;
}

/* A connection to 127.0.0.1 would come from there; from the pod's address it comes as REDIRECT leaves it. */
static __always_inline int needs_source(struct bpf_sock_addr *ctx)
{
    struct bpf_sock *sk = ctx->sk;
    return settings.source && sk && !READ(sk->src_ip4);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
    struct sockaddr_in source = {.sin_family = AF_INET};
    __u16 target;

    if (bpf_get_netns_cookie(ctx) != settings.netns)
        return PASS;
    target = connect_target(ctx, READ(ctx->user_ip4), READ(ctx->user_port));
    if (!target)
        return PASS;
    if (needs_source(ctx)) {
        source.sin_addr.s_addr = settings.source;
        bpf_bind(ctx, (struct sockaddr *)&source, sizeof(source));
    }
    WRITE(ctx->user_ip4, LOCALHOST);
    WRITE(ctx->user_port, bpf_htons(target));
    return PASS;
}

/* Programs that open AF_INET6 sockets for everything, as Java does, name IPv4 destinations ::ffff:a.b.c.d. */
SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
    struct sockaddr_in6 source = {.sin6_family = AF_INET6, .sin6_addr.s6_addr32 = {0, 0, MAPPED}};
    __u16 target;

    if (bpf_get_netns_cookie(ctx) != settings.netns)
        return PASS;
    if (READ(ctx->user_ip6[0]) || READ(ctx->user_ip6[1]) || READ(ctx->user_ip6[2]) != MAPPED)
        return PASS;
    target = connect_target(ctx, READ(ctx->user_ip6[3]), READ(ctx->user_port));
    if (!target)
        return PASS;
    if (needs_source(ctx)) {
        source.sin6_addr.s6_addr32[3] = settings.source;
        bpf_bind(ctx, (struct sockaddr *)&source, sizeof(source));
    }
    WRITE(ctx->user_ip6[3], LOCALHOST);
    WRITE(ctx->user_port, bpf_htons(target));
    return PASS;
}

/* Called for datagrams that name their destination; a connected socket was dealt with when it connected. */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
    struct bpf_sock *sk = ctx->sk;
    __u32 address, port;
    __u16 target;

    if (bpf_get_netns_cookie(ctx) != settings.netns || is_proxy(bpf_get_current_uid_gid()) || !sk)
        return PASS;
    address = READ(ctx->user_ip4);
    port = READ(ctx->user_port);
    target = decide(address ? address : LOCALHOST, bpf_ntohs((__u16)port), IPPROTO_UDP, READ(sk->src_ip4));
    if (!target)
        return PASS;
    keep(sk, OUTBOUND, address, port);
    WRITE(ctx->user_ip4, LOCALHOST);
    WRITE(ctx->user_port, bpf_htons(target));
    return PASS;
}

/* The destination before its rewriting, if this address is what it was rewritten to. */
static __always_inline struct origin *original(struct bpf_sock_addr *ctx, __u32 address)
{
    struct origin *kept;

    if (address != LOCALHOST || !ctx->sk)
        return 0;
    kept = bpf_sk_storage_get(&origins, ctx->sk, 0, 0);
    return kept && kept->kind == OUTBOUND ? kept : 0;
}

static __always_inline int restore4(struct bpf_sock_addr *ctx, int only_dns)
{
    struct origin *kept = original(ctx, READ(ctx->user_ip4));

    if (kept && (!only_dns || READ(ctx->user_port) == bpf_htons(settings.dns_port))) {
        WRITE(ctx->user_ip4, kept->address);
        WRITE(ctx->user_port, kept->port);
    }
    return PASS;
}

static __always_inline int restore6(struct bpf_sock_addr *ctx, int only_dns)
{
    struct origin *kept;

    if (READ(ctx->user_ip6[2]) != MAPPED)
        return PASS;
    kept = original(ctx, READ(ctx->user_ip6[3]));
    if (kept && (!only_dns || READ(ctx->user_port) == bpf_htons(settings.dns_port))) {
        WRITE(ctx->user_ip6[3], kept->address);
        WRITE(ctx->user_port, kept->port);
    }
    return PASS;
}

/* A resolver refuses an answer from an address it did not ask. */
SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
    return restore4(ctx, 1);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
    return restore6(ctx, 1);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
    return restore4(ctx, 0);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
    return restore6(ctx, 0);
}

/* The client's source port is chosen and the SYN not yet sent: the proxy cannot have accepted before the note exists. */
static __always_inline void hand_over(struct bpf_sock_ops *ctx)
{
    struct end client = {.address = READ(ctx->local_ip4), .port = READ(ctx->local_port)};
    struct bpf_sock *sk = ctx->sk;
    struct origin *kept = sk ? bpf_sk_storage_get(&origins, sk, 0, 0) : 0;

    if (kept)
        bpf_map_update_elem(&handover, &client, kept, BPF_ANY);
    else
        bpf_map_delete_elem(&handover, &client); /* an earlier connection from this port that was never accepted */
}

static __always_inline void take_over(struct bpf_sock_ops *ctx)
{
    struct end client = {.address = READ(ctx->remote_ip4), .port = bpf_ntohl(READ(ctx->remote_port))};
    struct bpf_sock *sk = ctx->sk;
    struct origin *noted = bpf_map_lookup_elem(&handover, &client);
    struct origin *mark = sk ? bpf_sk_storage_get(&origins, sk, 0, 0) : 0;

    /* Counted here and not in inbound(): late packets of a connection that is gone come to the look-up as well. */
    if (mark && mark->kind == PROXY_LISTENER)
        count(noted && noted->kind == SELF ? SELF_TCP : INBOUND_TCP);
    if (!noted || !sk)
        return;
    if (noted->kind == OUTBOUND) {
        keep(sk, OUTBOUND, noted->address, noted->port);
        count(HANDED_OVER);
    }
    bpf_map_delete_elem(&handover, &client);
}

SEC("sockops")
int connections(struct bpf_sock_ops *ctx)
{
    struct bpf_sock *sk;
    __u32 first = 0;
    __u32 op = READ(ctx->op);

    if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB &&
        op != BPF_SOCK_OPS_TCP_LISTEN_CB)
        return PASS;
    if (bpf_get_netns_cookie(ctx) != settings.netns)
        return PASS;
    if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
        hand_over(ctx);
    } else if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
        take_over(ctx);
    } else if (READ(ctx->local_port) == settings.inbound_port) {
        bpf_sock_map_update(ctx, &listener, &first, BPF_ANY);
        sk = ctx->sk;
        if (sk)
            keep(sk, PROXY_LISTENER, 0, 0);
    }
    return PASS;
}

SEC("cgroup/getsockopt")
int getsockopt(struct bpf_sockopt *ctx)
{
    struct sockaddr_in *answer = ctx->optval;
    struct bpf_sock *sk = ctx->sk;
    struct origin *kept;

    if (READ(ctx->optlen) > MAX_OPTION_BYTES)
        WRITE(ctx->optlen, 0); /* larger than what we are shown: older kernels fail the call if we leave it so */
    if (READ(ctx->level) != SOL_IP || READ(ctx->optname) != SO_ORIGINAL_DST || !sk)
        return PASS;
    kept = bpf_sk_storage_get(&origins, sk, 0, 0);
    if (!kept || kept->kind == SELF || (void *)(answer + 1) > ctx->optval_end)
        return PASS;
    answer->sin_family = AF_INET;
    if (kept->kind == PROXY_LISTENER) { /* accepted under its original address */
        answer->sin_addr.s_addr = READ(sk->src_ip4);
        answer->sin_port = bpf_htons((__u16)READ(sk->src_port));
    } else {
        answer->sin_addr.s_addr = kept->address;
        answer->sin_port = (__u16)kept->port;
    }
    WRITE(ctx->optlen, sizeof(*answer));
    WRITE(ctx->retval, 0);
    return PASS;
}

SEC("sk_lookup")
int inbound(struct bpf_sk_lookup *ctx)
{
    struct end client = {.address = READ(ctx->remote_ip4), .port = bpf_ntohs(ctx->remote_port)};
    __u32 address = READ(ctx->local_ip4), port = READ(ctx->local_port), first = 0;
    struct origin *noted;
    struct bpf_sock *sk;
    long refused;

    if (READ(ctx->family) != AF_INET || READ(ctx->protocol) != IPPROTO_TCP || address == LOCALHOST)
        return SK_PASS;
    if (is_local(client.address)) {
        /* From within the pod only what the proxy itself sends to the pod's address is captured. */
        noted = bpf_map_lookup_elem(&handover, &client);
        if (!noted || noted->kind != SELF)
            return SK_PASS;
    } else if (!has(settings.inbound_captured, (__u16)port)) {
        return SK_PASS;
    }
    sk = bpf_map_lookup_elem(&listener, &first);
    if (!sk) {
        count(PROXY_ABSENT);
        return settings.fail_closed ? SK_DROP : SK_PASS;
    }
    refused = bpf_sk_assign(ctx, sk, 0);
    bpf_sk_release(sk);
    return refused ? SK_DROP : SK_PASS;
}

/* Run once by the loader in the pod's namespace, attached nowhere: a proxy that was there first becomes known. */
SEC("tc")
int adopt(struct __sk_buff *ctx)
{
    struct bpf_sock_tuple tuple = {.ipv4.daddr = LOCALHOST, .ipv4.dport = bpf_htons(settings.inbound_port)};
    __u32 first = 0;
    struct bpf_sock *sk = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);

    if (!sk)
        return 0;
    keep(sk, PROXY_LISTENER, 0, 0);
    bpf_map_update_elem(&listener, &first, sk, BPF_ANY);
    bpf_sk_release(sk);
    return 1;
}

char _license[] SEC("license") = "Apache-2.0";
