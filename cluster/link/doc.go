// Package link connects the Caddys of one cluster: each pair that has something
// to say has one long-lived connection, encrypted and with certificates on both
// sides, that carries frames in order.
//
// It owns the listener for the other Caddys, the identity of this one, the
// handshake, and the question whether another one is dead.
//
// It promises:
//
//   - A frame arrives whole, once, and in the order in which it was sent, or the
//     connection ends and both sides notice.
//   - Both sides of a connection have the same protocol and cluster, and know
//     each other's id, boot id and advertised address. A refused handshake says
//     why on both sides.
//   - Sending never waits for the other side. A peer that does not read loses
//     its connection once [MaxQueued] bytes wait for it.
//   - Dead is proven, never guessed: see [Link.Dead].
//
// It never looks into a frame, never decides who is a member, and never dials
// by itself: when to try again is for the owner of the connection to say.
//
// # The protocol
//
// TLS 1.3 with certificates on both sides. Then each side sends one frame with
// its hello, as JSON, and closes the connection with a reason if it does not
// like the other's. A frame is its length, four bytes with the highest first,
// and so many bytes, at most [MaxFrame]. A frame of length zero says only that
// the sender lives.
package link
