//! Cases that fail through a defect of the client's own, each with what shows it. A case that fails otherwise is a finding
//! about the emulator, and so is one of these that passes.

use super::suite::{Outcome, Verdict};

/// How a defect shows.
pub enum Shown {
    /// The results differ from those of the client's CPU backend.
    Differs,
    /// The emulator's message has this, always.
    Always(&'static str),
    /// The emulator's message has this where certain others ran before.
    AfterOthers(&'static str),
}

/// A defect of the client's.
pub struct Known {
    /// The kind of operator.
    pub operator: &'static str,
    /// What the parameters of its cases contain, all of them.
    pub with: &'static [&'static str],
    /// How it shows.
    pub shown: Shown,
    /// What is wrong in the client.
    pub why: &'static str,
}

impl Known {
    fn covers(&self, outcome: &Outcome) -> bool {
        outcome.case.operator == self.operator
            && self.with.iter().all(|part| outcome.case.parameters.contains(part))
    }

    fn explains(&self, verdict: &Verdict) -> bool {
        match (&self.shown, verdict) {
            (Shown::Differs, Verdict::Differs(_)) => true,
            (Shown::Always(part), Verdict::PassedInPool(message) | Verdict::Ended(message)) => {
                message.contains(part)
            }
            (Shown::AfterOthers(part), Verdict::PassedAlone(message)) => message.contains(part),
            (Shown::AfterOthers(_), Verdict::Passed) => true,
            _ => false,
        }
    }
}

/// What was found in ggml 0.25.3.
pub const KNOWN: &[Known] = &[
    Known {
        operator: "GROUP_NORM",
        with: &[],
        shown: Shown::Always("aclnnGroupNorm: rstdOut"),
        why: "`ggml_cann_group_norm` allocates mean and deviation with a count of elements where bytes are meant",
    },
    Known {
        operator: "POOL_2D",
        with: &["pool_type=max", "p0=1"],
        shown: Shown::Always("aclnnConstantPadNd: out"),
        why: "`ggml_cann_max_pool2d` allocates the padded image with the border of one channel",
    },
    Known {
        operator: "POOL_2D",
        with: &["pool_type=max", "p0=0", "p1=1"],
        shown: Shown::Always("aclnnConstantPadNd: out"),
        why: "`ggml_cann_max_pool2d` allocates the padded image with the border of one channel",
    },
    Known {
        operator: "ROPE",
        with: &[],
        shown: Shown::AfterOthers("aclnnRepeat: out"),
        why: "`aclnn_rope_cache_init` keeps its caches of sines and cosines where heads got wider and positions did not grow",
    },
    Known {
        operator: "SET_ROWS",
        with: &["type_src=f16", "type_dst=f32"],
        shown: Shown::Differs,
        why: "`ggml_cann_set_rows` takes a source of f16 for f32 where the destination is f32",
    },
];

/// What is wrong: failures that no known defect explains, and known defects that did not show.
pub fn judge(outcomes: &[Outcome]) -> Vec<String> {
    let mut wrong = Vec::new();
    for outcome in outcomes {
        let known = KNOWN.iter().find(|known| known.covers(outcome));
        match (&outcome.verdict, known) {
            (verdict, Some(known)) if known.explains(verdict) => {}
            (Verdict::Passed, None) => {}
            (Verdict::Passed, Some(_)) => {
                wrong.push(format!("{} passes, and is listed as the client's defect", outcome.case.name()));
            }
            (
                Verdict::Differs(why)
                | Verdict::Ended(why)
                | Verdict::PassedAlone(why)
                | Verdict::PassedInPool(why),
                _,
            ) => wrong.push(format!("{}: {why}", outcome.case.name())),
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::cases::Case;
    use super::*;

    fn outcome(operator: &str, parameters: &str, verdict: Verdict) -> Outcome {
        let case = Case { operator: operator.into(), parameters: parameters.into(), supported: true };
        Outcome { case, verdict }
    }

    #[test]
    fn known_defects_must_show_and_nothing_else_may_fail() {
        let ended = |text: &str| Verdict::Ended(text.into());
        let overrun =
            "507035 (VECTOR_CORE_EXCEPTION): aclnnGroupNorm: rstdOut (float32 [32]): reach 32 bytes past";
        assert!(judge(&[outcome("GROUP_NORM", "n=1", ended(overrun))]).is_empty());
        assert_eq!(judge(&[outcome("GROUP_NORM", "n=1", ended("aclnnGroupNorm: out"))]).len(), 1);
        assert_eq!(judge(&[outcome("GROUP_NORM", "n=1", Verdict::Differs(String::new()))]).len(), 1);
        assert_eq!(judge(&[outcome("GROUP_NORM", "n=1", Verdict::Passed)]).len(), 1);
        assert_eq!(judge(&[outcome("ADD", "n=1", ended("no"))]).len(), 1);
        assert!(judge(&[outcome("ADD", "n=1", Verdict::Passed)]).is_empty());
        let late = |text: &str| Verdict::PassedAlone(text.into());
        assert!(
            judge(&[
                outcome("ROPE", "n=1", late("aclnnRepeat: out")),
                outcome("ROPE", "n=2", Verdict::Passed)
            ])
            .is_empty()
        );
        assert_eq!(
            judge(&[outcome("ROPE", "n=1", ended("aclnnRepeat: out"))]).len(),
            1,
            "alone it must pass"
        );
    }
}
