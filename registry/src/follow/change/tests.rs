use super::*;
use crate::follow::chain;

fn read(key: &str, value: &str) -> Result<Option<Change>, String> {
    let entry = Entry {
        key: format!("/heddle/v1/{key}"),
        value: value.to_owned().into(),
        create_revision: 3,
        mod_revision: 4,
    };
    change(&Keys::new("/heddle"), &entry).map_err(|error| chain(&error))
}

fn service(spec: &str) -> Result<Option<Change>, String> {
    let text = format!(
        r#"{{"formatVersion":1,"managedBy":"apply","metadata":{{"name":"web","namespace":"shop"}},"spec":{spec}}}"#
    );
    read("services/shop/web", &text)
}

#[test]
fn a_record_that_was_edited_by_hand_into_nonsense_is_a_bad_record() {
    let ports = r#""selector":"app=web","ports":[{"port":80}]"#;
    for (spec, reason) in [
        (
            format!(r#"{{{ports},"health":{{"tcp":{{}},"interval":"0s","fall":0}}}}"#),
            "breaks a rule: spec.health.interval: at least 10ms",
        ),
        (
            format!(r#"{{{ports},"health":{{"tcp":{{}},"fall":0}}}}"#),
            "breaks a rule: spec.health.fall: 1 to 100",
        ),
        (
            format!(r#"{{{ports},"recovery":{{"action":"restart","after":"0s"}}}}"#),
            "breaks a rule: spec.recovery.after: 1s to 24h",
        ),
        (
            r#"{"ports":[]}"#.to_owned(),
            "breaks a rule: spec.ports: a service has at least one port",
        ),
    ] {
        assert_eq!(service(&spec).unwrap_err(), reason);
    }
    let endpoint = r#"{"formatVersion":1,"managedBy":"apply","metadata":{"name":"e","namespace":"shop"},"spec":{"service":"web","address":"192.0.2.1","ports":{"http":0}}}"#;
    assert_eq!(
        read("endpoints/shop/e", endpoint).unwrap_err(),
        "breaks a rule: spec.ports.http: a port is 1 to 65535"
    );
    let registration =
        r#"{"formatVersion":1,"id":"pg","ports":[5432],"check":{"tcp":{},"timeout":"0s"}}"#;
    assert_eq!(
        read("registrations/n1/pg", registration).unwrap_err(),
        "breaks a rule: check.timeout: at least 10ms"
    );
}

#[test]
fn what_a_newer_version_asks_for_is_taken_over() {
    let newer = r#"{"selector":"app=web","loadBalancing":{"policy":"maglev"},"ports":[
        {"name":"dns","port":53},{"name":"dns-udp","port":53,"protocol":"udp"}]}"#;
    assert!(matches!(
        service(newer),
        Ok(Some(Change::Service(_, Some(_))))
    ));
}
