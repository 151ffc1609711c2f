//! ServiceCIDRs: addresses that Services may get.

use std::sync::Arc;

use super::field::{self, Notes};
use super::{Decode, Decoded, Key, Nameless, plain_name};
use crate::Event;
use crate::manifest;

impl Decode for manifest::ServiceCidr {
    fn key(&self) -> Result<Key, Nameless> {
        Ok(Key::ServiceCidr(plain_name(&self.metadata)?.into()))
    }

    /// One that is being deleted counts as long as it is there: Services may still have its addresses (S10).
    fn decode(&self) -> Result<Decoded, Nameless> {
        let name: Arc<str> = plain_name(&self.metadata)?.into();
        let key = Key::ServiceCidr(name.clone());
        let (mut notes, mut cidrs) = (Notes::of(&key), Vec::new());
        let written = self.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
        for (index, text) in written.iter().enumerate() {
            match field::network(text) {
                Ok(cidr) => cidrs.push(cidr),
                Err(message) => notes.add(format!("spec.cidrs[{index}]"), message),
            }
        }
        let problems = notes.into_problems();
        Ok(Decoded { event: Event::ServiceCidr(name, Some(cidrs)), problems, key })
    }
}
