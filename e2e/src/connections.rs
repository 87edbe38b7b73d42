//! The connections of a move, as its source's host has them: one of them may break by itself, as routers and firewalls make
//! them.

use crate::command::tool_line;
use crate::world::{Side, World};
use crate::{Error, Result};

/// Breaks, at both ends, the connection from one host to the other that has carried the most.
///
/// # Errors
/// There is none, or the kernel cannot end a connection (`CONFIG_INET_DIAG_DESTROY`).
pub fn break_busiest(world: &World, from: Side) -> Result<()> {
    let ss = format!("-N {} -HntiO state established dst {}", world.namespace(from), address(from));
    let list = tool_line("ss", &ss)?;
    let busiest = list.lines().filter_map(carried).max();
    let missing = || Error::unexpected("ss", "a connection that has carried something", &list);
    let (_, port) = busiest.ok_or_else(missing)?;
    let namespace = world.namespace(from);
    let ended =
        tool_line("ss", &format!("-N {namespace} -HntK sport = :{port} dst {}", address(from)))?;
    if ended.contains(&format!(":{port} ")) {
        return Ok(());
    }
    Err(Error::unexpected("ss -K", format!("the connection of port {port}"), &ended))
}

/// Where connections from a host go.
const fn address(from: Side) -> &'static str {
    from.other().address()
}

/// What a connection has carried, in bytes, and its port here.
fn carried(line: &str) -> Option<(u64, u16)> {
    let port = line.split_whitespace().nth(2)?.rsplit_once(':')?.1.parse().ok()?;
    let bytes = line.split_whitespace().find_map(|word| word.strip_prefix("bytes_sent:"))?;
    Some((bytes.parse().ok()?, port))
}
