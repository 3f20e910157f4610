//! Questions that were sent and are not answered yet, to the letter: one that comes in so is egret's own, which its servers
//! have sent back.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Letters of random case that a question must have: one of a thousand by chance has the same.
const LEAST_LETTERS: usize = 10;
/// Where a message's question begins (RFC 1035 §4.1.1).
const HEAD: usize = 12;
/// Type and class.
const TAIL: usize = 4;

/// Questions on their way.
#[derive(Debug, Default)]
pub(super) struct SentQuestions(Mutex<HashSet<Box<[u8]>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct OnItsWay {
    question: Box<[u8]>,
    all: Arc<SentQuestions>,
}

impl SentQuestions {
    /// Notes the question of a message; `None` where it could not be distinguished from another one.
    pub(super) fn note(self: &Arc<Self>, message: &[u8]) -> Option<OnItsWay> {
        let question: Box<[u8]> = question(message)?.into();
        if question.iter().filter(|byte| byte.is_ascii_alphabetic()).count() < LEAST_LETTERS {
            return None;
        }
        self.all().insert(question.clone());
        Some(OnItsWay { question, all: Arc::clone(self) })
    }

    /// Whether a question, as a client wrote it, is on its way.
    pub(super) fn have(&self, question: &[u8]) -> bool {
        self.all().contains(question)
    }

    fn all(&self) -> MutexGuard<'_, HashSet<Box<[u8]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.all.all().remove(&self.question);
    }
}

/// A message's first question: name, type and class.
fn question(message: &[u8]) -> Option<&[u8]> {
    let mut end = HEAD;
    loop {
        match usize::from(*message.get(end)?) {
            0 => return message.get(HEAD..end + 1 + TAIL),
            label => end += 1 + label,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::{Name, RecordType};

    fn message(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    #[test]
    fn a_question_is_known_to_the_letter_while_it_is_on_its_way() {
        let sent = Arc::new(SentQuestions::default());
        let written = |name| question(&message(name)).unwrap().to_vec();
        let way = sent.note(&message("LooPs.eXample.")).unwrap();
        assert!(sent.have(&written("LooPs.eXample.")));
        assert!(!sent.have(&written("loops.example.")), "a client's own");
        drop(way);
        assert!(!sent.have(&written("LooPs.eXample.")));
        assert!(sent.note(&message("a.Test.")).is_none(), "it has too few letters");
        assert!(sent.note(&message("loops.example.")[..20]).is_none());
    }
}
