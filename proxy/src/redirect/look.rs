//! What the kernel holds under the table's name, to be compared with what it should hold.

use std::collections::{BTreeMap, BTreeSet};

use super::netlink::{self, Message, Socket};
use super::nft::{COMMENT, SETS, nfgenmsg};
use super::uapi::*;
use super::{Range, RedirectError};

const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
/// How often rules are read at most when others keep changing nftables meanwhile.
const TRIES: u32 = 10;

/// What has the table's name.
#[derive(Debug)]
pub(super) enum Table {
    Missing,
    /// A table of ours, and the ranges that it was made for.
    Ours(Vec<Range>),
    /// A table without our comment.
    Foreign,
}

/// A table's rules: chain and handle. The kernel gives no handle twice within a table, so a rule that was deleted,
/// replaced or added by others shows.
pub(super) type Rules = Vec<(String, u64)>;

/// The keys of the table's sets, by the sets' names.
pub(super) type Sets = BTreeMap<String, BTreeSet<Vec<u8>>>;

/// The number that every change of any nftables rule in this network namespace raises.
pub(super) fn generation(netfilter: &mut Socket) -> Result<u32, RedirectError> {
    let request = request("look up the generation of nftables", NFT_MSG_GETGEN, 0);
    netfilter.get(request, generation_of)
}

pub(super) fn table(netfilter: &mut Socket, name: &str) -> Result<Table, RedirectError> {
    let step = format!("look up the table {name}");
    let mut request = request(&step, NFT_MSG_GETTABLE, 0);
    request.attr_str(NFTA_TABLE_NAME, name);
    match netfilter.get(request, ranges_of) {
        Ok(Some(ranges)) => Ok(Table::Ours(ranges)),
        Ok(None) => Ok(Table::Foreign),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Table::Missing),
        Err(error) => Err(error),
    }
}

/// The table's rules in their order; none when there is no such table.
pub(super) fn rules(netfilter: &mut Socket, table: &str) -> Result<Rules, RedirectError> {
    let mut tries = 1..TRIES;
    loop {
        let step = format!("read the rules of the table {table}");
        let mut request = request(&step, NFT_MSG_GETRULE, NLM_F_DUMP);
        request.attr_str(NFTA_RULE_TABLE, table);
        let mut rules = Rules::new();
        match netfilter.dump(request, |answer| rules.extend(rule_of(answer))) {
            Ok(()) => return Ok(rules),
            Err(error) if error.errno() == Some(libc::EINTR) && tries.next().is_some() => {}
            Err(error) => return Err(error),
        }
    }
}

/// The contents of the table's sets; a set that is missing is an error with `ENOENT`, one that others change
/// meanwhile with `EINTR`.
pub(super) fn sets(netfilter: &mut Socket, table: &str) -> Result<Sets, RedirectError> {
    let mut sets = Sets::new();
    for set in SETS {
        let step = format!("read the set {set} of the table {table}");
        let mut request = request(&step, NFT_MSG_GETSETELEM, NLM_F_DUMP);
        request
            .attr_str(NFTA_SET_ELEM_LIST_TABLE, table)
            .attr_str(NFTA_SET_ELEM_LIST_SET, set);
        let keys = sets.entry(set.to_owned()).or_default();
        netfilter.dump(request, |answer| keys.extend(keys_of(answer)))?;
    }
    Ok(sets)
}

fn request(step: &str, kind: u16, flags: u16) -> Message {
    let kind = (NFNL_SUBSYS_NFTABLES << 8) | kind;
    Message::new(step, kind, flags, &nfgenmsg(NFPROTO_INET, 0))
}

fn generation_of(answer: &[u8]) -> u32 {
    let id = attribute(answer, NFTA_GEN_ID).and_then(|id| id.try_into().ok());
    id.map(u32::from_be_bytes).unwrap_or_default()
}

/// The ranges that a table of ours was made for, read from its comment; `None` when it has no such comment.
pub(super) fn ranges_of(answer: &[u8]) -> Option<Vec<Range>> {
    let text = match attribute(answer, NFTA_TABLE_USERDATA)? {
        [NFTNL_UDATA_TABLE_COMMENT, len, text @ ..] => text.get(..usize::from(*len))?,
        _ => return None,
    };
    let text = std::str::from_utf8(text).ok()?;
    let ranges = text.trim_end_matches('\0').strip_prefix(COMMENT)?;
    let range = |word: &str| {
        let (address, prefix) = word.split_once('/')?;
        Range::new(address.parse().ok()?, prefix.parse().ok()?).ok()
    };
    Some(ranges.split_whitespace().filter_map(range).collect())
}

pub(super) fn rule_of(answer: &[u8]) -> Option<(String, u64)> {
    let chain = attribute(answer, NFTA_RULE_CHAIN)?;
    let chain = String::from_utf8_lossy(chain).replace('\0', "");
    let handle = attribute(answer, NFTA_RULE_HANDLE)?.try_into().ok()?;
    Some((chain, u64::from_be_bytes(handle)))
}

pub(super) fn keys_of(answer: &[u8]) -> Vec<Vec<u8>> {
    let elements = attribute(answer, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    let key = |(_, element)| {
        let key = nested(element, NFTA_SET_ELEM_KEY)?;
        nested(key, NFTA_DATA_VALUE).map(<[u8]>::to_vec)
    };
    netlink::attributes(elements).filter_map(key).collect()
}

/// An attribute of a message, which follows the header of the subsystem.
fn attribute(answer: &[u8], kind: u16) -> Option<&[u8]> {
    nested(answer.get(nfgenmsg(0, 0).len()..)?, kind)
}

fn nested(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    netlink::attributes(attributes)
        .find(|(found, _)| *found == kind)
        .map(|(_, payload)| payload)
}
