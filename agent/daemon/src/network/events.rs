//! Kubernetes Events of the pod network.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use podway_cluster::{EventReason, EventWriter, Regarding};
use podway_overlay::{Overlay, Problem, Reason, Unassigned};

/// Tells the cluster of what this node has to tell; nothing where there is no API server.
#[derive(Clone)]
pub(crate) struct Events {
    writer: Option<EventWriter>,
    node: Arc<str>,
    /// The uid of this node's Node, once it is known: `kubectl describe` asks for it.
    uid: Rc<RefCell<Arc<str>>>,
}

impl Events {
    /// Of this node, through `writer`.
    pub(crate) fn of(node: &str, writer: Option<EventWriter>) -> Self {
        Self { writer, node: node.into(), uid: Rc::new(RefCell::new("".into())) }
    }

    /// The own Node has this uid.
    pub(super) fn know_uid(&self, uid: &Arc<str>) {
        *self.uid.borrow_mut() = uid.clone();
    }

    /// Subnets were claimed for this node.
    pub(super) fn assigned(&self, note: &str) {
        if let Some(writer) = &self.writer {
            writer.normal(self.own(), EventReason::SubnetAssigned, "Assign", note);
        }
    }

    /// This node has no subnets.
    pub(super) fn unassigned(&self, why: &Unassigned) {
        self.warn(self.own(), why.into(), "Assign", &why.to_string());
    }

    /// Something is wrong with the pod network of this node as a whole.
    pub(super) fn own_trouble(&self, reason: EventReason, note: &str) {
        self.warn(self.own(), reason, "Program", note);
    }

    /// Something is wrong with a Node. Every node of the cluster sees it, so of other nodes' problems only those are told
    /// that this node is a party to, or all of them by the node with the least name.
    pub(super) fn problem(&self, problem: &Problem, overlay: &Overlay) {
        let regarding = match problem.node == self.node {
            true => self.own(),
            false if self.is_party(&problem.reason) || self.speaks_for_all(overlay) => {
                // As the kubelet does: `kubectl describe` looks for the name in the uid's place as well.
                Regarding::Node { name: problem.node.clone(), uid: problem.node.clone() }
            }
            false => return,
        };
        self.warn(regarding, (&problem.reason).into(), "Program", &problem.reason.to_string());
    }

    fn is_party(&self, reason: &Reason) -> bool {
        match reason {
            Reason::SubnetTaken { by: other, .. }
            | Reason::MacTaken { by: other, .. }
            | Reason::SubnetCovers { of: other, .. }
            | Reason::AddressInSubnet { of: other, .. } => *other == self.node,
            _ => false,
        }
    }

    fn speaks_for_all(&self, overlay: &Overlay) -> bool {
        overlay.peers().next().is_none_or(|least| self.node < *least)
    }

    fn warn(&self, regarding: Regarding, reason: EventReason, action: &str, note: &str) {
        if let Some(writer) = &self.writer {
            writer.warning(regarding, reason, action, note);
        }
    }

    fn own(&self) -> Regarding {
        let known = self.uid.borrow().clone();
        let uid = if known.is_empty() { self.node.clone() } else { known };
        Regarding::Node { name: self.node.clone(), uid }
    }
}
