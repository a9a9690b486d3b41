use clap::Command;

use super::*;

fn commands() -> Vec<Command> {
    let mut whole = Cli::shown();
    whole.build();
    whole.get_subcommands().cloned().collect()
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::shown().debug_assert();
}

#[test]
fn every_commands_help_has_an_example_of_it_and_keeps_within_100_columns() {
    for mut command in commands() {
        let name = command.get_name().to_owned();
        for help in [command.render_help(), command.render_long_help()] {
            let text = help.to_string();
            let example = format!("heddle {name}");
            let shown = text.split("Example").nth(1).unwrap_or_default();
            assert!(shown.contains(&example), "{name}: no example:\n{text}");
            let wide = text.lines().find(|l| l.chars().count() > 100);
            assert_eq!(wide, None, "{name}");
            assert!(!text.contains('\x1b'), "{name}");
        }
    }
}

#[test]
fn the_node_to_talk_to_is_shown_where_there_is_one() {
    let shows = |name: &str| {
        let mut all = commands();
        let command = all.iter_mut().find(|c| c.get_name() == name);
        let help = command.unwrap().render_long_help().to_string();
        help.contains("--server")
    };
    assert!(shows("get") && shows("top") && shows("env"));
    assert!(!shows("up") && !shows("demo") && !shows("doctor") && !shows("whoami"));
}

#[test]
fn every_option_is_explained() {
    for command in commands() {
        for argument in command.get_arguments() {
            let id = argument.get_id();
            assert!(argument.get_help().is_some(), "{} {id}", command.get_name());
        }
    }
}

#[test]
fn there_is_a_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    pages(folder.path()).unwrap();
    let page = std::fs::read_to_string(folder.path().join("heddle.1")).unwrap();
    assert!(page.contains(".TH heddle 1"), "{page}");
    let hidden = |c: &Command| c.is_hide_set();
    for command in commands().iter().filter(|c| !hidden(c)) {
        let name = format!("heddle-{}.1", command.get_name());
        let page = std::fs::read_to_string(folder.path().join(&name));
        assert!(page.unwrap().contains("Example"), "{name}");
    }
}
