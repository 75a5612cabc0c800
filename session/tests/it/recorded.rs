//! Our senders and receivers against recorded transfers of the reference.
