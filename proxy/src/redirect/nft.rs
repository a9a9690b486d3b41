//! Our nftables table, as netlink batches. In the words of `nft`:
//!
//! ```text
//! table inet heddle {
//!     comment "vip ranges 10.96.0.0/16"
//!     set services4 { type ipv4_addr . inet_service }
//!     set bound4    { type ipv4_addr . inet_proto . inet_service }
//!     (services6 and bound6 likewise)
//!
//!     chain guard { type filter hook prerouting priority -120
//!         ip daddr 10.96.0.0/16 ct state new ct status & dnat == 0 jump unknown
//!     }
//!     chain unknown {
//!         ip daddr . meta l4proto . th dport @bound4 accept
//!         ip daddr . tcp dport @services4 accept
//!         meta l4proto tcp reject with tcp reset
//!         meta l4proto udp reject with icmpx port-unreachable
//!     }
//!     chain prerouting { type nat hook prerouting priority -110
//!         ip daddr 10.96.0.0/16 jump services
//!     }
//!     chain output { type nat hook output priority -110
//!         ip daddr 10.96.0.0/16 jump services
//!     }
//!     chain services {
//!         (where a bound socket had to take another port: first, for both protocols,)
//!         ip daddr 10.96.0.10 udp dport 53 dnat to :40053
//!         ip daddr . meta l4proto . th dport @bound4 dnat to ip daddr
//!         ip daddr . tcp dport @services4 dnat to :15001
//!         dnat to ip daddr
//!     }
//! }
//! ```
//!
//! Why two priorities: a nat chain cannot refuse, and `accept` in it does not keep Docker's nat
//! chain at −100 from translating the flow after all. So what has no service is refused in a filter
//! chain just before (conntrack, at −200, must already have told new flows from old), and every
//! flow into the ranges gets its translation at −110, be it to the address it has: a flow is
//! translated once only, so Docker's turn is over.
//!
//! Why no guard at output: a datagram that is refused there fails in `sendto` with `EPERM`. What
//! this host sends to itself comes by prerouting once more, through `lo`, and is refused there with
//! the `ECONNREFUSED` that programs expect. Flows translated on their way out are let pass then.
//!
//! Why `dnat to :PORT` and not `redirect to :PORT`: redirect also rewrites the address to that of
//! the incoming interface, and drops the packet when there is none of a fitting scope. The VIP is
//! an address of this host already, and keeping it lets one client port reach many VIPs at once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::expr::{Family, IPV4, IPV6, Rule};
use super::look::Sets;
use super::netlink::Message;
use super::uapi::*;
use super::{Elements, Range, RedirectConfig};

/// Ahead of nat, behind conntrack.
const GUARD_PRIORITY: i32 = -120;
/// Ahead of `NF_IP_PRI_NAT_DST` (−100), where Docker's chains are.
const NAT_PRIORITY: i32 = -110;
/// Elements per message: at most 40 bytes each, far below the 64 KiB of one attribute.
const CHUNK: usize = 1000;
/// nft's numbers of the types of a set's key, which it prints by them.
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
/// Leads the table's comment, by which a table is known as ours; the ranges follow.
pub(super) const COMMENT: &str = "vip ranges";
/// A user data entry carries its length in one byte, and the kernel takes 256 bytes in all.
const COMMENT_LEN: usize = 240;

const NLM_F_CREATE: u16 = libc::NLM_F_CREATE as u16;
const NLM_F_APPEND: u16 = libc::NLM_F_APPEND as u16;

/// All sets of the table.
pub(super) const SETS: [&str; 4] = ["services4", "bound4", "services6", "bound6"];

const GUARD: &str = "guard";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const UNKNOWN: &str = "unknown";
const SERVICES: &str = "services";

/// Replaces whatever has the table's name by the whole table with `elements` in it.
pub(super) fn replace(
    config: &RedirectConfig,
    ranges: &[Range],
    moved: &[(Range, u16, u16)],
    elements: &Elements,
) -> Batch {
    let mut batch = Batch::new(&config.table, "replace");
    // Deleting what may not be there is an error; so it is made first.
    batch.add_table(&[]);
    batch.delete_table();
    batch.add_table(ranges);
    for (id, family) in (1..).step_by(2).zip([&IPV4, &IPV6]) {
        let address = family.key_type;
        let services = (address << 6) | TYPE_INET_SERVICE;
        let bound = (((address << 6) | TYPE_INET_PROTOCOL) << 6) | TYPE_INET_SERVICE;
        batch.add_set(&services_set(family), id, services, family.address_len + 4);
        batch.add_set(&bound_set(family), id + 1, bound, family.address_len + 8);
    }

    let prerouting = NF_INET_PRE_ROUTING;
    batch.add_chain(UNKNOWN, None);
    batch.add_chain(SERVICES, None);
    batch.add_chain(GUARD, Some(("filter", prerouting, GUARD_PRIORITY)));
    batch.add_chain(PREROUTING, Some(("nat", prerouting, NAT_PRIORITY)));
    batch.add_chain(OUTPUT, Some(("nat", NF_INET_LOCAL_OUT, NAT_PRIORITY)));
    for range in ranges {
        batch.add_rule(GUARD, |rule| {
            rule.daddr_in(range)
                .ct_state_new()
                .ct_status_not_dnat()
                .jump(UNKNOWN);
        });
        for chain in [PREROUTING, OUTPUT] {
            batch.add_rule(chain, |rule| rule.daddr_in(range).jump(SERVICES));
        }
    }
    for (address, port, at) in moved {
        for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            batch.add_rule(SERVICES, |rule| {
                rule.daddr_in(address)
                    .l4proto(protocol as u8)
                    .dport_is(*port)
                    .dnat_to_port(Family::of(address), *at);
            });
        }
    }
    for family in [&IPV4, &IPV6] {
        let (services, bound) = (services_set(family), bound_set(family));
        batch.add_rule(UNKNOWN, |rule| {
            rule.bound_socket_in(family, &bound).accept();
        });
        batch.add_rule(UNKNOWN, |rule| {
            rule.tcp_service_in(family, &services).accept();
        });
        batch.add_rule(SERVICES, |rule| {
            rule.bound_socket_in(family, &bound).dnat_to_itself(family);
        });
        batch.add_rule(SERVICES, |rule| {
            rule.tcp_service_in(family, &services)
                .dnat_to_port(family, config.port);
        });
        batch.add_rule(SERVICES, |rule| {
            rule.daddr_of(family).dnat_to_itself(family);
        });
    }
    batch.add_rule(UNKNOWN, |rule| {
        rule.l4proto(libc::IPPROTO_TCP as u8).reject_with_reset();
    });
    batch.add_rule(UNKNOWN, |rule| {
        rule.l4proto(libc::IPPROTO_UDP as u8)
            .reject_with_port_unreachable();
    });
    batch.change(&Elements::default(), elements);
    batch
}

/// Turns the table's sets from `old` into `new`.
pub(super) fn change(table: &str, old: &Elements, new: &Elements) -> Batch {
    let mut batch = Batch::new(table, "change");
    batch.change(old, new);
    batch
}

/// Deletes the table, whether it is there or not.
pub(super) fn delete(table: &str) -> Batch {
    let mut batch = Batch::new(table, "delete");
    batch.add_table(&[]);
    batch.delete_table();
    batch
}

/// The keys that the table's sets hold for `elements`, as rules build them in registers.
pub(super) fn keys(elements: &Elements) -> Sets {
    let mut sets: Sets = SETS.map(|set| (set.to_owned(), BTreeSet::new())).into();
    for family in [&IPV4, &IPV6] {
        let services = elements.services.iter();
        let services = services.filter_map(|(ip, port)| key(family, *ip, None, *port));
        sets.insert(services_set(family), services.collect());
        let bound = elements.bound.iter();
        let bound =
            bound.filter_map(|(ip, protocol, port)| key(family, *ip, Some(*protocol), *port));
        sets.insert(bound_set(family), bound.collect());
    }
    sets
}

/// A batch under construction: the kernel carries out all of it or nothing.
#[derive(Debug)]
pub(super) struct Batch {
    table: String,
    messages: Vec<Message>,
}

impl Batch {
    fn new(table: &str, purpose: &str) -> Self {
        let begin = Message::batch_mark(
            format!("{purpose} the table {table}"),
            NFNL_MSG_BATCH_BEGIN,
            &nfgenmsg(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES),
        );
        Self {
            table: table.to_owned(),
            messages: vec![begin],
        }
    }

    pub(super) fn finish(mut self) -> Vec<Message> {
        self.messages.push(Message::batch_mark(
            format!("finish the batch for the table {}", self.table),
            NFNL_MSG_BATCH_END,
            &nfgenmsg(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES),
        ));
        self.messages
    }

    /// Without ranges: as it takes to delete it.
    fn add_table(&mut self, ranges: &[Range]) {
        let comment = comment(ranges);
        self.push(
            "add",
            "the table",
            NFT_MSG_NEWTABLE,
            NLM_F_CREATE,
            |m, table| {
                m.attr_str(NFTA_TABLE_NAME, table);
                if !ranges.is_empty() {
                    m.attr(NFTA_TABLE_USERDATA, &comment);
                }
            },
        );
    }

    fn delete_table(&mut self) {
        self.push("delete", "the table", NFT_MSG_DELTABLE, 0, |m, table| {
            m.attr_str(NFTA_TABLE_NAME, table);
        });
    }

    fn add_set(&mut self, name: &str, id: u32, key_type: u32, key_len: u32) {
        let what = format!("the set {name} to the table");
        self.push("add", &what, NFT_MSG_NEWSET, NLM_F_CREATE, |m, table| {
            m.attr_str(NFTA_SET_TABLE, table)
                .attr_str(NFTA_SET_NAME, name)
                .attr_be32(NFTA_SET_KEY_TYPE, key_type)
                .attr_be32(NFTA_SET_KEY_LEN, key_len)
                .attr_be32(NFTA_SET_ID, id);
        });
    }

    fn add_chain(&mut self, name: &str, base: Option<(&str, u32, i32)>) {
        let what = format!("the chain {name} to the table");
        self.push("add", &what, NFT_MSG_NEWCHAIN, NLM_F_CREATE, |m, table| {
            m.attr_str(NFTA_CHAIN_TABLE, table)
                .attr_str(NFTA_CHAIN_NAME, name);
            if let Some((kind, hook, priority)) = base {
                m.attr_str(NFTA_CHAIN_TYPE, kind)
                    .nest(NFTA_CHAIN_HOOK, |m| {
                        m.attr_be32(NFTA_HOOK_HOOKNUM, hook)
                            .attr_be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
                    });
            }
        });
    }

    fn add_rule(&mut self, chain: &str, write: impl FnOnce(Rule<'_>)) {
        let what = format!("a rule to the chain {chain} of the table");
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.push("add", &what, NFT_MSG_NEWRULE, flags, |m, table| {
            m.attr_str(NFTA_RULE_TABLE, table)
                .attr_str(NFTA_RULE_CHAIN, chain)
                .nest(NFTA_RULE_EXPRESSIONS, |m| write(Rule::new(m)));
        });
    }

    fn change(&mut self, old: &Elements, new: &Elements) {
        for family in [&IPV4, &IPV6] {
            let (services, bound) = (services_set(family), bound_set(family));
            let service = |(address, port): &(IpAddr, u16)| key(family, *address, None, *port);
            let socket = |(address, protocol, port): &(IpAddr, u8, u16)| {
                key(family, *address, Some(*protocol), *port)
            };
            self.change_set(&services, &old.services, &new.services, service);
            self.change_set(&bound, &old.bound, &new.bound, socket);
        }
    }

    fn change_set<T: Ord>(
        &mut self,
        set: &str,
        old: &BTreeSet<T>,
        new: &BTreeSet<T>,
        key: impl Fn(&T) -> Option<Vec<u8>>,
    ) {
        let gone: Vec<_> = old.difference(new).filter_map(&key).collect();
        let come: Vec<_> = new.difference(old).filter_map(&key).collect();
        for (step, kind, flags, keys) in [
            ("delete", NFT_MSG_DELSETELEM, 0, gone),
            ("add", NFT_MSG_NEWSETELEM, NLM_F_CREATE, come),
        ] {
            let what = format!("elements of the set {set} of the table");
            for chunk in keys.chunks(CHUNK) {
                self.push(step, &what, kind, flags, |m, table| {
                    m.attr_str(NFTA_SET_ELEM_LIST_TABLE, table)
                        .attr_str(NFTA_SET_ELEM_LIST_SET, set)
                        .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
                            for key in chunk {
                                m.nest(NFTA_LIST_ELEM, |m| {
                                    m.nest(NFTA_SET_ELEM_KEY, |m| {
                                        m.attr(NFTA_DATA_VALUE, key);
                                    });
                                });
                            }
                        });
                });
            }
        }
    }

    fn push(
        &mut self,
        verb: &str,
        what: &str,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Message, &str),
    ) {
        let mut message = Message::new(
            format!("{verb} {what} {}", self.table),
            (NFNL_SUBSYS_NFTABLES << 8) | kind,
            flags,
            &nfgenmsg(NFPROTO_INET, 0),
        );
        fill(&mut message, &self.table);
        self.messages.push(message);
    }
}

pub(super) fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, NFNETLINK_V0, high, low]
}

fn services_set(family: &Family) -> String {
    format!("services{}", family.suffix)
}

fn bound_set(family: &Family) -> String {
    format!("bound{}", family.suffix)
}

/// A set's key as rules build it in registers; `None` for an address of the other family.
fn key(family: &Family, address: IpAddr, protocol: Option<u8>, port: u16) -> Option<Vec<u8>> {
    let mut key = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    if key.len() != family.address_len as usize {
        return None;
    }
    if let Some(protocol) = protocol {
        key.extend_from_slice(&[protocol, 0, 0, 0]);
    }
    key.extend_from_slice(&port.to_be_bytes());
    key.extend_from_slice(&[0, 0]);
    Some(key)
}

fn comment(ranges: &[Range]) -> Vec<u8> {
    let mut text = COMMENT.to_owned();
    for range in ranges {
        let word = format!(" {range}");
        if text.len() + word.len() < COMMENT_LEN {
            text.push_str(&word);
        }
    }
    text.push('\0');
    let len = u8::try_from(text.len()).expect("a comment is cut at 240 bytes");
    let mut entry = vec![NFTNL_UDATA_TABLE_COMMENT, len];
    entry.extend_from_slice(text.as_bytes());
    entry
}
