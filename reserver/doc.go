// Package reserver holds the truth about one service: its instances with
// their slots, the requests inside them, and the line of requests that wait.
//
// It owns who may go where, and in which order. A request makes a
// Reservation before it is forwarded and releases it exactly once; the
// reservation holds one slot of one instance, or a place in the line.
//
// It promises:
//   - no instance has more reservations than slots; a lowered number of slots
//     takes nobody out and admits nobody until use is below it;
//   - the line is first in, first out, and nobody overtakes it, except a
//     request that is tried again because its instance cannot have seen it:
//     that one stands before everyone;
//   - a guest, who has a place in the line and no request in it, is called
//     when its turn comes, and then its request stands before everyone; it
//     never holds a slot, so nobody waits for one who does not come;
//   - a free slot and a waiter never exist side by side: a freed or new slot
//     is handed to the oldest waiter under the same lock that freed it, so a
//     grant and a cancellation cannot both win;
//   - a doubted instance is given no request until somebody vouches for it, and
//     the request that doubted it waits before everyone;
//   - choosing an instance takes O(log n) of n instances or less, leaving the
//     line O(1), and neither allocates when a slot is free.
//
// It never starts a goroutine, never blocks, never talks to a network, and
// knows neither Caddy nor a platform nor why instances come and go; package
// scaler tells it.
package reserver
