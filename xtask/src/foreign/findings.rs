//! Defects of the client's own, each with cases that show it. A case that fails otherwise is a finding about the emulator,
//! and so is a defect that does not show any more.

use super::Place;
use super::suite::{self, Outcome, Verdict};

/// How a defect shows.
pub enum Shown {
    /// The results differ from those of the client's CPU backend, in every case.
    Differs,
    /// A write past an allocation, whose message has `message`: in a case or two run for themselves always, in others where
    /// what ran before left a small allocation.
    WritesPast {
        message: &'static str,
        /// Cases which, run in this order by a process of their own, end it.
        witness: &'static [&'static str],
    },
}

/// A defect of the client's.
pub struct Known {
    /// The kind of operator.
    pub operator: &'static str,
    /// What the parameters of its cases contain, all of them.
    pub with: &'static [&'static str],
    /// What they do not contain.
    pub without: &'static [&'static str],
    /// How it shows.
    pub shown: Shown,
    /// What is wrong in the client.
    pub why: &'static str,
}

impl Known {
    fn covers(&self, outcome: &Outcome) -> bool {
        let has = |part: &&str| outcome.case.parameters.contains(*part);
        outcome.case.operator == self.operator && self.with.iter().all(has) && !self.without.iter().any(has)
    }

    fn explains(&self, verdict: &Verdict) -> bool {
        match (&self.shown, verdict) {
            (Shown::Differs, Verdict::Differs(_)) => true,
            (Shown::WritesPast { message, .. }, Verdict::PassedInPool(said) | Verdict::PassedAlone(said)) => {
                said.contains(message)
            }
            (Shown::WritesPast { .. }, Verdict::Passed) => true,
            _ => false,
        }
    }
}

/// What was found in ggml 0.25.3.
pub const KNOWN: &[Known] = &[
    Known {
        operator: "GROUP_NORM",
        with: &[],
        without: &[],
        shown: Shown::WritesPast {
            message: "aclnnGroupNorm: rstdOut",
            witness: &["GROUP_NORM(type=f32,ne=[64,64,320,1],num_groups=32,eps=0.000001)"],
        },
        why: "`ggml_cann_group_norm` allocates mean and deviation with a count of elements where bytes are meant",
    },
    Known {
        operator: "POOL_2D",
        with: &["pool_type=max"],
        without: &["p0=0,p1=0"],
        shown: Shown::WritesPast {
            message: "aclnnConstantPadNd: out",
            witness: &[
                "POOL_2D(pool_type=max,type_input=f32,ne_input=[10,10,3,1],k0=3,k1=3,s0=1,s1=1,p0=1,p1=1)",
            ],
        },
        why: "`ggml_cann_max_pool2d` allocates the padded image with the border of one channel",
    },
    Known {
        operator: "ROPE",
        with: &[],
        without: &[],
        shown: Shown::WritesPast {
            message: "aclnnRepeat",
            witness: &[
                "ROPE(type=f32,ne_a=[64,1,2,1],n_dims=64,mode=2,n_ctx=512,fs=1.000000,ef=0.000000,\
                 af=1.000000,ff=0,v=0,inplace=0,n_offs=0)",
                "ROPE(type=f32,ne_a=[128,32,2,1],n_dims=128,mode=0,n_ctx=512,fs=1.000000,ef=0.000000,\
                 af=1.000000,ff=0,v=1,inplace=0,n_offs=0)",
            ],
        },
        why: "`aclnn_rope_cache_init` keeps its caches of sines and cosines where heads get wider and positions not more",
    },
    Known {
        operator: "SET_ROWS",
        with: &["type_src=f16", "type_dst=f32"],
        // Half of one row is none.
        without: &["r=1,v=1"],
        shown: Shown::Differs,
        why: "`ggml_cann_set_rows` takes a source of f16 for f32 where the destination is f32",
    },
];

/// What is wrong with outcomes: failures that no known defect explains, and known differences that did not show.
pub fn judge(outcomes: &[Outcome]) -> Vec<String> {
    let mut wrong = Vec::new();
    for outcome in outcomes {
        let known = KNOWN.iter().find(|known| known.covers(outcome));
        match (&outcome.verdict, known) {
            (verdict, Some(known)) if known.explains(verdict) => {}
            (Verdict::Passed, None) | (Verdict::NotCompared, _) => {}
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

/// Runs the witnesses of writes past an allocation: which did not show.
pub fn witnesses(place: &Place) -> Result<Vec<String>, String> {
    let mut wrong = Vec::new();
    for known in KNOWN {
        let Shown::WritesPast { message, witness } = &known.shown else { continue };
        let said = suite::end(place, witness)?;
        if !said.as_ref().is_some_and(|said| said.contains(message)) {
            let said = said.unwrap_or_else(|| "nothing".into());
            wrong.push(format!(
                "{} must end with a message about `{message}`: {said}",
                witness.join(" then ")
            ));
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::super::cases::Case;
    use super::*;

    fn findings(operator: &str, parameters: &str, verdict: Verdict) -> usize {
        let case = Case { operator: operator.into(), parameters: parameters.into(), supported: true };
        judge(&[Outcome { case, verdict }]).len()
    }

    #[test]
    fn only_known_defects_explain_a_failure() {
        let past = || "507035: aclnnGroupNorm: rstdOut (float32 [32]): reach 32 bytes past".to_string();
        assert_eq!(findings("GROUP_NORM", "n=1", Verdict::PassedInPool(past())), 0);
        assert_eq!(findings("GROUP_NORM", "n=1", Verdict::Passed), 0);
        assert_eq!(findings("GROUP_NORM", "n=1", Verdict::Ended(past())), 1, "from the pool it must pass");
        assert_eq!(findings("GROUP_NORM", "n=1", Verdict::PassedInPool("aclnnGroupNorm: out".into())), 1);
        assert_eq!(findings("GROUP_NORM", "n=1", Verdict::Differs(String::new())), 1);
        assert_eq!(findings("ADD", "n=1", Verdict::Ended("no".into())), 1);
        assert_eq!(findings("ADD", "n=1", Verdict::PassedAlone("no".into())), 1);
        assert_eq!(findings("ADD", "n=1", Verdict::Passed), 0);
        let rows = "type_src=f16,type_dst=f32,r=2,v=0";
        assert_eq!(findings("SET_ROWS", rows, Verdict::Differs(String::new())), 0);
        assert_eq!(findings("SET_ROWS", rows, Verdict::Passed), 1, "a defect that is gone is told");
        assert_eq!(findings("SET_ROWS", "type_src=f16,type_dst=f32,r=1,v=1", Verdict::Passed), 0);
    }
}
