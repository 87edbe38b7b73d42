//! What QEMU's human monitor says of memory. There is no machine protocol for it, so its text is parsed, strictly.
//!
//! ```text
//! gpa2hva 0x0      Host virtual address for 0x0 (pc.ram) is 0x7fb300000000
//!                  No memory is mapped at address 0x0
//! info ramblock, until 7.2
//!               Block Name    PSize              Offset               Used              Total
//!                   pc.ram    4 KiB  0x0000000000000000 0x000000000fffe000 0x000000000fffe000
//! info ramblock, since 8.0: two more columns
//!               Block Name    PSize              Offset               Used              Total                HVA  RO
//!                   pc.ram    4 KiB  0x0000000000000000 0x000000000fffe000 0x000000000fffe000 0x00007f12ebe00000  rw
//! ```

use sterna_model::{BlockName, MAX_BLOCKS};

/// A line of `info ramblock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlock {
    /// The block.
    pub name: BlockName,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that it may grow to.
    pub max_bytes: u64,
    /// Where it is in QEMU's address space, if this QEMU says so.
    pub host_address: Option<u64>,
}

/// The block and the host address that `gpa2hva` answered with; `None` where it says that there is nothing.
#[must_use]
pub fn parse_gpa2hva(reply: &str) -> Option<(BlockName, u64)> {
    let rest = reply.trim().strip_prefix("Host virtual address for ")?;
    let (_, rest) = rest.split_once(" (")?;
    let (name, address) = rest.rsplit_once(") is ")?;
    Some((BlockName::new(name.as_bytes()).ok()?, hexadecimal(address.trim())?))
}

/// The blocks that `info ramblock` lists; `None` where the text is not what we know.
#[must_use]
pub fn parse_ramblock(reply: &str) -> Option<Vec<RamBlock>> {
    let mut lines = reply.lines();
    let header: Vec<_> = lines.next()?.split_ascii_whitespace().collect();
    let columns = ["Block", "Name", "PSize", "Offset", "Used", "Total"];
    let rest = header.strip_prefix(&columns)?;
    let has_address = rest.first().is_some_and(|column| *column == "HVA");
    let blocks: Option<Vec<_>> = lines
        .filter(|line| !line.trim().is_empty())
        .take(MAX_BLOCKS + 1)
        .map(|line| parse_block(line, has_address))
        .collect();
    blocks.filter(|blocks| blocks.len() <= MAX_BLOCKS)
}

fn parse_block(line: &str, has_address: bool) -> Option<RamBlock> {
    // The name may have spaces, the page size has one: so the numbers are found first.
    let (text, numbers) = line.split_at(line.find("  0x")?);
    let mut numbers = numbers.split_ascii_whitespace();
    let mut number = || hexadecimal(numbers.next()?);
    let (_offset, used_bytes, max_bytes) = (number()?, number()?, number()?);
    let host_address = if has_address { Some(number()?) } else { None };
    let mut words = text.trim().rsplitn(3, ' ');
    let (_unit, _page_size) = (words.next()?, words.next()?);
    let name = BlockName::new(words.next()?.trim().as_bytes()).ok()?;
    Some(RamBlock { name, used_bytes, max_bytes, host_address })
}

fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u64::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "              Block Name    PSize              Offset               Used              Total\r
                  pc.ram    4 KiB  0x0000000000000000 0x000000000fffe000 0x000000000fffe000\r
    /rom@etc/acpi/tables    4 KiB  0x0000000010080000 0x0000000000020000 0x0000000000200000\r
";
    const NEW: &str = "              Block Name    PSize              Offset               Used              Total                HVA  RO
                    mem0    2 MiB  0x0000000000000000 0x0000000100000000 0x0000000100000000 0x00007ffedbe00000  rw
           a name apart    4 KiB  0x0000000100000000 0x0000000000040000 0x0000000000040000 0x00007f12ebe00000  ro
";

    #[test]
    fn understands_both_tables() {
        let old = parse_ramblock(OLD).unwrap();
        assert_eq!(old[1].name.as_str(), "/rom@etc/acpi/tables");
        assert_eq!((old[1].used_bytes, old[1].max_bytes), (0x20000, 0x20_0000));
        assert_eq!(old[0].host_address, None);
        let new = parse_ramblock(NEW).unwrap();
        assert_eq!(new[0].name.as_str(), "mem0");
        assert_eq!(new[0].host_address, Some(0x7ffe_dbe0_0000));
        assert_eq!(new[1].name.as_str(), "a name apart");
    }

    #[test]
    fn understands_an_address() {
        let reply = "Host virtual address for 0x0 (pc.ram) is 0x7fb300000000\r\n";
        let (name, address) = parse_gpa2hva(reply).unwrap();
        assert_eq!((name.as_str(), address), ("pc.ram", 0x7fb3_0000_0000));
        for wrong in [
            "",
            "No memory is mapped at address 0x0\n",
            "Memory at address 0x0 is not RAM\n",
            "Host virtual address for 0x0 (pc.ram) is 7fb300000000",
            "Host virtual address for 0x0 (pc.ram) is 0x+7fb300000000",
            "Host virtual address for 0x0 () is 0x7fb300000000",
            "Host virtual address for 0x0 (pc.ram) is 0x7fb3000000000000000000000",
        ] {
            assert_eq!(parse_gpa2hva(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn refuses_other_tables() {
        for wrong in ["", "Name Size", &OLD.replace("0x0000000000020000", "many")] {
            assert_eq!(parse_ramblock(wrong), None, "{wrong}");
        }
        let many = NEW.lines().next().unwrap().to_owned()
            + &format!("\n{}", NEW.lines().nth(1).unwrap()).repeat(MAX_BLOCKS + 1);
        assert_eq!(parse_ramblock(&many), None);
    }
}
