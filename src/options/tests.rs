//! How options are patched, and what effect they have.

use serde_json::json;

use super::*;

fn patched(options: &SessionOptions, patch: Value) -> Result<SessionOptions, String> {
    options.patched(patch.as_object().unwrap()).map_err(|error| error.to_string())
}

#[test]
fn a_patch_changes_what_it_names_and_null_clears() {
    let first =
        json!({"mode": " plan ", "cwd": "/srv", "timeout_seconds": 60, "extra": {"effort": "high", "b_2": "x"}});
    let options = patched(&SessionOptions::default(), first).unwrap();
    assert_eq!(options.mode.as_deref(), Some("plan"));
    let options = patched(&options, json!({"cwd": null, "model": "m", "extra": {"effort": null, "c": "y"}})).unwrap();
    let expected = json!({"mode": "plan", "model": "m", "timeout_seconds": 60, "extra": {"b_2": "x", "c": "y"}});
    assert_eq!(serde_json::to_value(&options).unwrap(), expected);
    assert_eq!(options.timeout(), Some(Duration::from_secs(60)));
    assert_eq!(patched(&options, json!({"extra": null})).unwrap().extra, BTreeMap::new());
}

#[test]
fn what_cannot_be_set_is_refused_with_what_is_needed() {
    let many: Map<_, _> = (0..33).map(|n| (format!("k{n}"), json!("v"))).collect();
    for (patch, problem) in [
        (json!({"modle": "x"}), "the nearest known one is model"),
        (json!({"colour": "x"}), "the known ones are mode, model, cwd"),
        (json!({"mode": 1}), "mode needs a text"),
        (json!({"mode": "  "}), "mode is empty"),
        (json!({"mode": "x".repeat(65)}), "at most 64 characters"),
        (json!({"model": "a\nb"}), "control character"),
        (json!({"model": "a\u{0}b"}), "control character"),
        (json!({"permission_profile": "é".repeat(81)}), "at most 80 characters"),
        (json!({"cwd": "relative/path"}), "absolute"),
        (json!({"cwd": "/".repeat(4097)}), "at most 4096"),
        (json!({"timeout_seconds": 0}), "from 1 to 86400"),
        (json!({"timeout_seconds": 86_401}), "from 1 to 86400"),
        (json!({"timeout_seconds": 1.5}), "from 1 to 86400"),
        (json!({"timeout_seconds": "60"}), "from 1 to 86400"),
        (json!({"extra": []}), "an object of texts"),
        (json!({"extra": {"-flag": "x"}}), "no option can have"),
        (json!({"extra": {"": "x"}}), "no option can have"),
        (json!({"extra": {"a b": "x"}}), "no option can have"),
        (json!({"extra": {"a": "x".repeat(513)}}), "extra.a may have at most 512"),
        (json!({"extra": {"a": {}}}), "extra.a needs a text"),
        (json!({"extra": many}), "at most 32"),
    ] {
        let error = patched(&SessionOptions::default(), patch.clone()).unwrap_err();
        assert!(error.contains(problem), "{patch}: {error}");
    }
    let long = patched(&SessionOptions::default(), json!({"x".repeat(10_000): 1})).unwrap_err();
    assert!(long.len() < 300, "{long}");
}

#[test]
fn a_command_line_says_the_same() {
    for (changes, patch) in [
        (vec![("model", Some("m")), ("mode", None)], json!({"model": "m", "mode": null})),
        (vec![("timeout_seconds", Some("60"))], json!({"timeout_seconds": 60})),
        (vec![("timeout_seconds", Some("soon"))], json!({"timeout_seconds": "soon"})),
        (vec![("extra.effort", Some("7")), ("extra.b", None)], json!({"extra": {"effort": "7", "b": null}})),
        (vec![], json!({})),
    ] {
        assert_eq!(Value::Object(SessionOptions::patch_of(changes)), patch);
    }
}

#[test]
fn effect_of_an_option_follows_from_what_the_agent_offers() {
    let set = json!({"mode": "plan", "model": "big", "cwd": "/", "extra": {"effort": "high", "other": "x"}});
    let options = patched(&SessionOptions::default(), set).unwrap();
    let told = |takes, advertised: Option<&Value>| serde_json::to_value(options.effects(takes, advertised)).unwrap();
    let (fixed, flexible) = (Takes { always: &["model"], advertised: false }, Takes { always: &[], advertised: true });
    let expected = json!({"cwd": "applied", "mode": "ignored", "model": "applied", "extra.effort": "ignored",
        "extra.other": "ignored"});
    assert_eq!(told(fixed, None), expected);
    assert_eq!(told(flexible, None)["mode"], "unknown");
    let advertised = json!({
        "modes": {"availableModes": [{"id": "plan"}]},
        "config_options": [
            {"id": "m", "category": "model", "options": [{"name": "group", "options": [{"value": "big"}]}]},
            {"id": "effort", "options": [{"value": "low"}]},
            {"id": "other"},
        ],
    });
    let offered = json!({"cwd": "applied", "mode": "applied", "model": "applied", "extra.effort": "ignored",
        "extra.other": "applied"});
    assert_eq!(told(flexible, Some(&advertised)), offered);
    for hostile in [json!(null), json!([]), json!({"modes": 1, "config_options": {"a": 1}}), json!("x")] {
        assert_eq!(told(flexible, Some(&hostile))["model"], "ignored");
    }
}

#[test]
fn mode_that_is_not_offered_is_refused_with_those_that_are() {
    let set = |options: &SessionOptions, mode: &str| patched(options, json!({"mode": mode})).unwrap();
    let offers = json!({"modes": {"availableModes": [{"id": "ask"}, {"id": "plan"}]},
        "config_options": [{"id": "m", "category": "mode", "options": [{"value": "code"}]}]});
    let (unset, nonsense) = (SessionOptions::default(), set(&SessionOptions::default(), "nonsense"));
    let refused = nonsense.check_offered(&unset, Some(&offers)).unwrap_err().to_string();
    assert_eq!(refused, "the option mode is none that the agent offers: ask, plan");
    for mode in ["plan", "code"] {
        assert_eq!(set(&unset, mode).check_offered(&nonsense, Some(&offers)), Ok(()));
    }
    // What was set before may be kept, and cleared.
    let kept = patched(&nonsense, json!({"model": "m"})).unwrap();
    assert_eq!(kept.check_offered(&nonsense, Some(&offers)), Ok(()));
    assert_eq!(unset.check_offered(&nonsense, Some(&offers)), Ok(()));
    for unsaid in [None, Some(&json!({})), Some(&json!({"modes": {"availableModes": []}})), Some(&json!([1]))] {
        assert_eq!(nonsense.check_offered(&unset, unsaid), Ok(()));
    }
    let many: Vec<_> = (0..100).map(|n| json!({"id": format!("{n}").repeat(100)})).collect();
    let many = json!({"modes": {"availableModes": many}});
    assert!(nonsense.check_offered(&unset, Some(&many)).unwrap_err().to_string().len() < 2000);

    let takes = Takes { always: &["mode"], advertised: false };
    for (advertised, effect) in [(None, "unknown"), (Some(&offers), "unknown"), (Some(&json!({})), "applied")] {
        assert_eq!(nonsense.effects(takes, advertised)["mode"].as_str(), effect, "{advertised:?}");
    }
    assert_eq!(set(&unset, "plan").effects(takes, Some(&offers))["mode"], Effect::Applied);
}

proptest::proptest! {
    #[test]
    fn whatever_is_set_fits_and_is_read_back_the_same(key in "[a-z_]{1,20}|mode|cwd|extra", value in ".{0,100}") {
        let own = format!("extra.{value}");
        for change in [(&*key, Some(&*value)), (&*own, Some(&*key)), (&*key, None)] {
            let patch = SessionOptions::patch_of([change]);
            let Ok(options) = SessionOptions::default().patched(&patch) else { continue };
            let stored = serde_json::to_string(&options).unwrap();
            proptest::prop_assert!(!stored.chars().any(char::is_control), "{}", stored);
            proptest::prop_assert_eq!(&serde_json::from_str::<SessionOptions>(&stored).unwrap(), &options);
            // What was accepted once is accepted as it is stored, and changes nothing.
            let again = serde_json::to_value(&options).unwrap();
            proptest::prop_assert_eq!(&options.patched(again.as_object().unwrap()).unwrap(), &options);
            proptest::prop_assert_eq!(options.patched(&Map::new()).unwrap(), options);
        }
    }
}
