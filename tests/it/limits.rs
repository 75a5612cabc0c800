//! Limits of time: which one has passed, its value and the last output are in the error.

use anyhow::{Context as _, Result};
use kiln_tests::DaemonOptions;

use crate::support::{Site, check_contains, outcome, unique};

const STEP: &str = "ARG BASE\nFROM $BASE\nRUN echo first; echo second >&2; sleep 1000\n";

fn site(config: &str, dockerfile: &str) -> Result<Site> {
    let options = DaemonOptions { config: config.to_owned(), ..DaemonOptions::default() };
    Site::with_options(&[("Dockerfile", dockerfile)], options)
}

/// With `N` seconds, of which there are more when a busy machine does not get as far as the step's output.
#[test]
fn a_step_that_takes_too_long_fails() -> Result<()> {
    let step = "time limit exceeded: the step ran longer than Ns (step limit); its last output:";
    let silence = "time limit exceeded: the step wrote nothing for Ns (silence limit); its last output:";
    let build = "time limit exceeded: the build took longer than Ns (build limit)";
    for (config, arg, want) in [
        ("", "--opt=kiln.step-timeout=Ns", step),
        ("[kiln]\nstepTimeout = N\n", "", step),
        ("[kiln]\nstepTimeout = \"Ns\"\n", "--opt=kiln.step-timeout=1h", step),
        ("[kiln]\nstepTimeout = \"1h\"\n", "--opt=kiln.silence-timeout=Ns", silence),
        ("[kiln]\nsilenceTimeout = \"N000ms\"\n", "", silence),
        ("[kiln]\nbuildTimeout = \"Ns\"\n", "", build),
        ("", "--opt=kiln.build-timeout=Ns", build),
    ] {
        let fails_after = |seconds: &str| -> Result<(String, String)> {
            let [config, arg, want] = [config, arg, want].map(|text| text.replace('N', seconds));
            let args: Vec<&str> = [arg.as_str()].into_iter().filter(|arg| !arg.is_empty()).collect();
            let failed =
                site(&config, STEP)?.build(&args)?.failure().with_context(|| format!("{config}{arg}"))?;
            Ok((failed.stderr, want))
        };
        let (mut stderr, mut want) = fails_after("2")?;
        // The step's name has the words too, but does not end in them.
        let wrote = |stderr: &str, word: &str| stderr.lines().any(|line| line.ends_with(word));
        if !wrote(&stderr, " second") {
            (stderr, want) = fails_after("40")?;
        }
        check_contains(&stderr, &["error: failed to solve", &want]);
        assert!(wrote(&stderr, " first") && wrote(&stderr, " second"), "{stderr}");
        assert_eq!(outcome(&stderr, "RUN echo"), "ERROR", "{stderr}");
    }
    Ok(())
}

#[test]
fn what_keeps_within_its_limits_passes() -> Result<()> {
    let config = "[kiln]\nstepTimeout = 60\nsilenceTimeout = 1\nbuildTimeout = \"5m\"\n";
    let speaking = "ARG BASE\nFROM $BASE\nRUN for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.3; done\n";
    site(config, speaking)?.build(&[])?.success()?;
    Ok(())
}

#[test]
fn limits_that_are_none_are_clear_errors() -> Result<()> {
    let site = site("", STEP)?;
    for value in ["soon", "0s", "-5s", "10"] {
        let failed = site.build(&[&format!("--opt=kiln.step-timeout={value}")])?.failure()?;
        check_contains(&failed.stderr, &["`kiln.step-timeout`", value, "use a duration such as 90s"]);
    }
    Ok(())
}

#[test]
fn a_limit_holds_for_the_build_that_has_it_alone() -> Result<()> {
    let mark = unique()?;
    let dockerfile = format!(
        "ARG BASE\nFROM $BASE AS b\nRUN --mount=type=cache,target=/c echo {mark} >> /c/runs; echo begun; sleep 4; cp /c/runs /out\nFROM scratch\nCOPY --from=b /out /\n"
    );
    let site = site("", &dockerfile)?;
    let dir = tempfile::tempdir()?;
    let patient = site.start(&[&format!("--output=type=local,dest={}", dir.path().display())])?;
    patient.wait_for("begun")?;
    let failed = site.build(&["--opt=kiln.step-timeout=2s"])?.failure()?;
    check_contains(&failed.stderr, &["the step ran longer than 2s (step limit)", "begun"]);
    patient.finish()?.success()?;
    assert_eq!(std::fs::read_to_string(dir.path().join("out"))?, format!("{mark}\n"), "it ran once");
    Ok(())
}
