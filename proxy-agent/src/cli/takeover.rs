//! The arguments of `takeover`.

use clap::{Args, Subcommand};

use super::PinArgs;

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct TakeoverArgs {
    #[command(subcommand)]
    pub action: TakeoverAction,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum TakeoverAction {
    /// Say which flows are kube-proxy's, and whether it can be stopped; fails if it cannot
    Status(PinArgs),
    /// Leave new flows to kube-proxy, while open ones go on
    Back(BackArgs),
    /// Take new flows over again
    Forward(PinArgs),
}

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct BackArgs {
    #[command(flatten)]
    pub pins: PinArgs,
    /// Even if there are no rules of kube-proxy
    #[arg(long)]
    pub force: bool,
}
