//! Versions and capabilities: agents one release apart always agree, others are told whom to upgrade.

use proptest::prelude::*;

use super::samples::{hellos, offer, replies};
use crate::hello::{Capabilities, Capability, HelloError, Welcome};
use crate::limits::{MAX_CAPABILITIES, MAX_VERSION_BYTES};
use crate::versions::{Agreed, PROTOCOL_NEWEST, PROTOCOL_OLDEST, negotiate, oldest_beside};
use crate::{Hello, Offer, Reply, Token};

fn release(protocol: u16) -> Offer {
    offer(oldest_beside(protocol), protocol, "x")
}

proptest! {
    #[test]
    fn neighbours_agree_and_others_do_not(one in 1_u16..60, other in 1_u16..60) {
        let agreed = negotiate(&release(one), &release(other));
        prop_assert_eq!(agreed.is_ok(), one.abs_diff(other) <= 1);
        let mirrored = negotiate(&release(other), &release(one));
        prop_assert_eq!(agreed.as_ref().ok(), mirrored.as_ref().ok());
        if let Ok(agreed) = agreed {
            prop_assert_eq!(agreed.protocol, one.min(other));
        }
    }
}

#[test]
fn this_build_speaks_one_protocol_and_the_one_before() {
    let ours = Offer::of_this_build("0.1.0", Capabilities::default());
    assert_eq!(ours.protocol_max, PROTOCOL_NEWEST);
    assert_eq!(ours.protocol_min, PROTOCOL_OLDEST);
    assert_eq!(PROTOCOL_OLDEST, oldest_beside(PROTOCOL_NEWEST));
    assert_eq!([1, 2, 3].map(oldest_beside), [1, 1, 2]);
}

#[test]
fn a_refusal_says_which_side_to_upgrade() {
    let (old, new) = (offer(1, 1, "sterna 0.1.0"), offer(3, 4, "sterna 0.9.0"));
    let at_old = negotiate(&old, &new).unwrap_err();
    let at_new = negotiate(&new, &old).unwrap_err();
    assert_eq!(at_old.code, "protocol-version");
    assert_eq!(
        at_old.reason,
        "expected a protocol of 1 to 1 (sterna 0.1.0), found 3 to 4 (sterna 0.9.0)"
    );
    assert_eq!(
        at_old.remedy,
        "upgrade the host with sterna 0.1.0 to one that speaks protocol 3 or newer"
    );
    assert_eq!(at_new.remedy, at_old.remedy);
}

#[test]
fn the_release_after_this_one_speaks_our_protocol_in_both_directions() {
    let ours = Offer::of_this_build("0.1.0", Capabilities::default());
    let next = release(PROTOCOL_NEWEST + 1);
    for (server, client) in [(&ours, &next), (&next, &ours)] {
        let Reply::Welcome(welcome) = Reply::to_offer(server, client) else { panic!("refused") };
        let agreed = Agreed::by_welcome(client, &welcome).unwrap();
        assert_eq!(agreed.protocol, PROTOCOL_NEWEST);
        assert!(agreed.capabilities.iter().next().is_none(), "we have none of theirs");
    }
    let after = release(PROTOCOL_NEWEST + 2);
    assert!(matches!(Reply::to_offer(&ours, &after), Reply::Refused { .. }));
}

#[test]
fn what_comes_after_the_hello_is_known_or_an_error() {
    use crate::{Message, Sender};
    for (document, what) in [
        (&br#"{"type":"commit","epoch":5,"newer":1}"#[..], "newer"),
        (br#"{"type":"hibernate"}"#, "hibernate"),
    ] {
        let error = alloc::format!("{}", Message::decode(document, Sender::Source).unwrap_err());
        assert!(error.contains(what), "{error}");
    }
    let role = br#"{"offer":{"protocol_min":1,"protocol_max":1,"software":"9","capabilities":[]},
        "role":{"type":"gossip"}}"#;
    let error = alloc::format!("{}", Hello::decode(role).unwrap_err());
    assert!(error.contains("gossip"), "{error}");
}

#[test]
fn only_capabilities_of_both_are_used() {
    let mut theirs = offer(1, 1, "0.1.0");
    theirs.capabilities = Capabilities::new(&["follow", "from-the-future"]).unwrap();
    let agreed = negotiate(&offer(1, 1, "0.1.0"), &theirs).unwrap();
    assert!(agreed.capabilities.contains("follow"));
    assert_eq!(agreed.capabilities.iter().count(), 1);
}

#[test]
fn a_client_holds_the_server_to_its_offer() {
    let ours = offer(1, 2, "0.1.0");
    let welcome = |protocol, names: &[&str]| {
        let capabilities = Capabilities::new(names).unwrap();
        let welcome = Welcome { protocol, software: "0.1.0".into(), capabilities };
        Agreed::by_welcome(&ours, &welcome)
    };
    assert_eq!(welcome(2, &["follow"]).unwrap().protocol, 2);
    assert!(matches!(welcome(3, &[]), Err(HelloError::NotOffered { min: 1, max: 2, found: 3 })));
    assert!(matches!(welcome(1, &["x"]), Err(HelloError::CapabilityNotOffered { .. })));
}

#[test]
fn documents_survive_the_wire() {
    for (_, hello) in hellos() {
        assert_eq!(Hello::decode(&hello.encode().unwrap()).as_ref(), Ok(&hello));
    }
    for (_, reply) in replies() {
        assert_eq!(Reply::decode(&reply.encode().unwrap()).as_ref(), Ok(&reply));
    }
    let (ours, theirs) = (offer(1, 1, "0.1.0"), offer(2, 2, "0.2.0"));
    assert!(matches!(Reply::to_offer(&ours, &theirs), Reply::Refused { .. }));
    assert!(matches!(Reply::to_offer(&ours, &ours), Reply::Welcome(_)));
}

#[test]
fn a_hello_from_the_future_is_understood() {
    let text =
        br#"{"offer":{"protocol_min":1,"protocol_max":2,"software":"9","capabilities":["a","b"],
        "new":[1]},"role":{"type":"check"},"newer":{"x":null}}"#;
    assert_eq!(Hello::decode(text).unwrap().offer.protocol_max, 2);
}

#[test]
fn offers_are_checked_on_both_ways() {
    let with = |change: fn(&mut Offer)| {
        let mut hello = hellos().remove(0).1;
        change(&mut hello.offer);
        let sent = hello.encode();
        assert_eq!(sent.is_ok(), Hello::decode(&serde_json::to_vec(&hello).unwrap()).is_ok());
        sent
    };
    assert!(with(|offer| offer.software = "x".repeat(MAX_VERSION_BYTES)).is_ok());
    let long = with(|offer| offer.software = "x".repeat(MAX_VERSION_BYTES + 1));
    assert!(matches!(long, Err(HelloError::Software { found_bytes: 129 })));
    assert!(with(|offer| offer.software = "\u{1b}[2J".into()).is_err());
    let empty = with(|offer| offer.protocol_min = 2);
    assert!(matches!(empty, Err(HelloError::ProtocolRange { min: 2, max: 1 })));
    assert!(with(|offer| offer.protocol_min = 0).is_err());
}

#[test]
fn capabilities_are_bounded_sorted_and_named() {
    let named = |number: usize| Capability::new(&alloc::format!("c{number:03}")).unwrap();
    let set = |count| Capabilities::try_from((0..count).map(named).collect::<alloc::vec::Vec<_>>());
    assert!(set(MAX_CAPABILITIES).is_ok());
    assert_eq!(set(MAX_CAPABILITIES + 1), Err(HelloError::CapabilityCount { found: 65 }));
    for wrong in ["", "A", "a b", "é", &"x".repeat(33)] {
        assert!(Capability::new(wrong).is_err(), "{wrong}");
    }
    for wrong in [r#"["b","a"]"#, r#"["a","a"]"#] {
        assert!(serde_json::from_str::<Capabilities>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn tokens_compare_whole_and_print_nothing() {
    let token = Token([7; 32]);
    assert_eq!(token, Token([7; 32]));
    for at in 0..32 {
        let mut other = token;
        other.0[at] ^= 0x80;
        assert_ne!(token, other);
    }
    assert_eq!(alloc::format!("{token:?}"), "Token(secret)");
}
