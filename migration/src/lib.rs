//! What both halves of a migration share: plan, phases, ids, journal, report, the convergence rule.
