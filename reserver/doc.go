// Package reserver holds the truth about one service: its instances with
// their slots, the requests inside them, and the queue of those that wait.
//
// It owns which request goes where, and in which order. A request makes a
// Reservation before it is forwarded and releases it exactly once. The
// reservation holds one slot of one instance, or a place in the queue.
//
// It promises:
//   - No instance has more reservations than slots. A lowered number of slots
//     takes no request out, and admits none until use is below it. With NoSlots
//     an instance admits none at all.
//   - The queue is first in, first out, within a class and a share. Higher
//     classes are served first, the shares of a class in turn. Waiters rise with
//     time, so that no class starves. A newcomer never overtakes a waiter of its
//     own kind. A request that is tried again, because its first instance cannot
//     have seen it, stands before all others.
//   - A request of a session goes to the session's instance as long as that
//     serves, also while it drains. It waits there for a slot, and others pass it.
//     When the instance is gone the session goes on elsewhere.
//   - A visitor, which has a place in the queue and no request in it, is called
//     when its turn comes, and then its request stands before all others. It
//     never holds a slot, so no request waits for a visitor that does not come.
//   - No request waits while a slot is free that it may use. A freed or new slot
//     goes to the waiter whose turn is next of those that may use it, under the
//     same lock that freed it, so a grant and a cancellation cannot both win.
//   - A suspect instance gets no request until the scaler has verified it, and
//     the request that raised the doubt waits before all others.
//   - While WatchFreed is on, the function of SetFreed is told of every slot that
//     a request gave back and that stays free. Of an instance with more requests
//     inside than slots it is always told.
//   - Choosing an instance takes O(log n) of n instances or less, and leaving the
//     queue O(log n) of n waiters, or O(1) without classes, shares and sessions.
//     Only the first request of a key looks at all instances, which takes 1 or 2
//     ns for each. Nothing is allocated when a slot is free, but for the first
//     request of a key.
//
// It never starts a goroutine, never blocks, never talks to a network, and
// knows neither Caddy nor a platform, nor why instances come and go. The
// control loop tells it.
package reserver
