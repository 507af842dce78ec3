//! What the config allows, by every way that an option is set.

use serde_json::json;

use super::*;
use crate::config::Config;
use crate::permission::OptionKind;

fn rules(config: &str, agent: &str) -> OptionRules {
    let config = Config::load(config, Path::new("mainstay.toml"), Path::new("/srv/w")).unwrap();
    let (agent, workspace) = (agent.parse().unwrap(), WorkspaceName::builtin());
    OptionRules::new((&agent, config.agents.get(&agent)), (&workspace, config.workspaces.get(&workspace)))
}

fn judged(rules: &OptionRules, options: Value) -> String {
    let options = SessionOptions::default().patched(options.as_object().unwrap()).unwrap();
    let advertised =
        json!({"config_options": [{"id": "style", "category": "mode"}, {"id": "llm", "category": "model"}]});
    rules.check(&options, Some(&advertised)).map_or_else(|refused| refused.to_string(), |()| "allowed".to_owned())
}

#[test]
fn unrestricted_modes_are_refused_by_every_door() {
    let rules = rules("", "claude");
    for mode in [
        "bypassPermissions",
        "BYPASS_permissions",
        "danger-full-access",
        "yolo",
        "auto-approve",
        "full-access",
        "x#yolo",
    ] {
        for options in [
            json!({"mode": mode}),
            json!({"permission_profile": mode}),
            json!({"extra": {"mode": mode}}),
            json!({"extra": {"permission-mode": mode}}),
            json!({"extra": {"style": mode}}),
            json!({"extra": {"anything": mode}}),
        ] {
            let said = judged(&rules, options.clone());
            assert!(said.contains("`allow_modes` of [agents.claude]"), "{options}: {said}");
        }
    }
    for options in [
        json!({"extra": {"dangerously-skip-permissions": "true"}}),
        json!({"extra": {"yolo": "1"}}),
        json!({"extra": {"approval_policy": "never"}}),
    ] {
        assert_ne!(judged(&rules, options.clone()), "allowed", "{options}");
    }
    for options in [
        json!({"mode": "plan", "model": "m", "permission_profile": "acceptEdits", "extra": {"effort": "never"}}),
        json!({"mode": "auto", "extra": {"yolo": "false", "agent": "reviewer"}}),
    ] {
        assert_eq!(judged(&rules, options), "allowed");
    }
}

#[test]
fn a_word_that_is_unrestricted_for_one_agent_is_not_for_all() {
    let config = "[agents.g]\ndriver = \"acp\"\ncommand = [\"npx\", \"/opt/goose\", \"acp\"]";
    assert_ne!(judged(&rules(config, "g"), json!({"mode": "auto"})), "allowed");
    assert_eq!(judged(&rules(config, "codex"), json!({"mode": "auto"})), "allowed");
}

#[test]
fn answers_that_are_refused_modes_are_not_offered() {
    let advertised = json!({"modes": {"availableModes": [{"id": "plan"}, {"id": "acceptEdits"}]},
        "config_options": [{"id": "style", "category": "mode", "options": [{"options": [{"value": "quick"}]}]}]});
    let only_plan = rules("[agents.claude]\nallow_modes = [\"plan\"]", "claude");
    let (unlisted, known) = (rules("", "claude"), Some(&advertised));
    for (id, kind, rules, advertised, refused) in [
        ("acceptEdits", OptionKind::AllowAlways, &only_plan, known, true),
        ("quick", OptionKind::AllowOnce, &only_plan, known, true),
        ("plan", OptionKind::AllowOnce, &only_plan, known, false),
        ("allow", OptionKind::AllowOnce, &only_plan, known, false),
        ("acceptEdits", OptionKind::RejectOnce, &only_plan, known, false),
        ("acceptEdits", OptionKind::AllowAlways, &only_plan, None, false),
        ("acceptEdits", OptionKind::AllowAlways, &unlisted, known, false),
        ("bypassPermissions", OptionKind::AllowOnce, &unlisted, None, true),
    ] {
        let answer = PermissionOption { id: id.to_owned(), name: String::new(), kind };
        assert_eq!(rules.refuses_answer(&answer, advertised), refused, "{answer:?}");
    }
}

#[test]
fn a_list_has_to_name_the_value_in_both_tables() {
    let config = "[agents.claude]\nallow_modes = [\"plan\", \"bypassPermissions\"]\nallow_options = [\"effort\", \"style\"]\n\
                  [workspaces.default]\nallow_modes = [\"*\"]\nallow_models = [\"sonnet\"]";
    let rules = rules(config, "claude");
    for (options, refused_by) in [
        (json!({"mode": "bypassPermissions", "model": "sonnet", "extra": {"effort": "low"}}), ""),
        (json!({"mode": "acceptEdits"}), "`allow_modes` of [agents.claude]"),
        (json!({"model": "opus"}), "`allow_models` of [workspaces.default]"),
        (json!({"extra": {"style": "acceptEdits"}}), "`allow_modes` of [agents.claude]"),
        (json!({"extra": {"agent": "x"}}), "`allow_options` of [agents.claude]"),
    ] {
        let said = judged(&rules, options.clone());
        let as_expected = if refused_by.is_empty() { said == "allowed" } else { said.contains(refused_by) };
        assert!(as_expected, "{options}: {said}");
    }
    // A model by another name.
    assert_ne!(
        judged(
            &super::tests::rules(&config.replace("\"style\"", "\"llm\""), "claude"),
            json!({"extra": {"llm": "opus"}})
        ),
        "allowed"
    );
}

#[test]
fn a_directory_is_judged_where_its_links_lead() {
    let dir = tempfile::tempdir().unwrap();
    let (work, other) = (dir.path().join("work"), dir.path().join("other"));
    std::fs::create_dir_all(work.join("in")).unwrap();
    std::fs::create_dir(&other).unwrap();
    for (link, to) in [("out", "../other"), ("in-too", "in"), ("nowhere", "../nothing")] {
        std::os::unix::fs::symlink(to, work.join(link)).unwrap();
    }
    let rules = |more: &str| {
        let config = Config::load(more, Path::new("mainstay.toml"), &work).unwrap();
        let (agent, workspace) = (AgentName::builtin(), WorkspaceName::builtin());
        OptionRules::new((&agent, config.agents.get(&agent)), (&workspace, config.workspaces.get(&workspace)))
    };
    let plain = rules("");
    for (path, allowed) in [
        (".", true),
        ("in", true),
        ("in-too", true),
        ("not/yet/there", true),
        ("in/../..", false),
        ("out", false),
        ("out/below", false),
        ("nowhere", false),
        ("nowhere/x", false),
        ("not/../../other", false),
        ("/", false),
        ("/proc/self/root", false),
    ] {
        let judged = plain.resolve(&work.join(path));
        assert_eq!(judged.is_ok(), allowed, "{path}: {judged:?}");
    }
    let real = work.canonicalize().unwrap();
    assert_eq!(plain.resolve(&work.join("in-too")).unwrap(), real.join("in"));
    let said = plain.resolve(&other).unwrap_err().to_string();
    assert!(said.contains("`cwd_roots` of [workspaces.default]"), "{said}");
    // The workspace's directory stays allowed.
    let wider = rules("[workspaces.default]\ncwd_roots = [\"../other\"]");
    assert!(wider.resolve(&other.join("x")).is_ok() && wider.resolve(&work).is_ok());
    let both = rules("[workspaces.default]\ncwd_roots = [\"../other\"]\n[agents.demo]\ncwd_roots = [\"/srv\"]");
    let said = both.resolve(&other).unwrap_err().to_string();
    assert!(said.contains("`cwd_roots` of [agents.demo]"), "{said}");
}
