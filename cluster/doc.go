// Package cluster is the protocol by which several Caddys share the slots of
// instances exactly: no instance has more requests of all Caddys inside than it
// has slots.
//
// It owns the rules, as state machines: a Node is one Caddy's part. Its Step
// takes an event and returns what to do. Messages and time are values.
//
// One object lies in a coordinator: the View, which says who leads and who are
// the members. It is changed by compare-and-swap only. The leader divides the
// slots: it grants them to members, recalls them and takes them back. Its
// ledger is stored nowhere: a new leader asks the members.
//
// It promises:
//   - A request starts only within a lease (Lease.MayWrite) and only in a slot
//     that was granted. The leader's ledger never says less than what the
//     members hold.
//   - A leader acts only while no other can: it has read the view within the
//     last lease, or all members have said that they still follow it.
//   - Slots of a lost Caddy are used again only after proof that its process has
//     ended, after it has said what it holds, or after its lease and
//     Options.LostAfter. By then it has cut its requests. With Options.Replace
//     time proves nothing, and instances that a lost Caddy may use are replaced.
//   - A new leader takes all slots that it does not know of for used, until
//     every Caddy of the view before has said what it holds, or is proven dead,
//     or had the time to cut its requests.
//   - A coordinator that shows an older view than the one that is followed is
//     never believed: the leader stops, and writes a newer view, in which it
//     takes over anew and gives no lease before all requests of both have ended.
//   - When an instance has left its address, the slots of whatever has the address
//     next are granted only once no Caddy can hold slots of the one before: a Caddy
//     that has not heard of the end reaches the next one in those. With
//     Options.Replace, the next one is replaced too if a lost Caddy may have done so.
//   - A free slot goes to the Caddy whose oldest request has waited longest. If
//     none is free, idle slots are recalled at once, and slots that others need
//     too after Options.Fair. The number of recalls is bounded by the number of
//     requests that wait and the number of members.
//   - A request that finds a slot causes no message.
//
// Two things it cannot prevent. A Caddy that stands still as a whole for longer
// than Options.LostAfter, with requests inside, may overlap with the next
// user of its slots; if it had lost its lease before, a tenth of that is enough,
// because it cuts its requests only shortly before their slots are used. With
// Options.Replace neither can happen. And a Caddy may stand still between the
// last look at the lease and the write. A coordinator that
// forgets a view that it has confirmed is found out by every Caddy that knew
// the view, not by one that never heard of it. With Options.KeepServing a Caddy
// without a lease goes on, so the limits may be passed.
//
// It never starts a goroutine, reads no clock, talks to no network, and knows
// neither Caddy nor a platform.
//
// # What it needs
//
// Messages between two Caddys come over one stream, in order, or the stream is
// broken. Dead is proof, never a guess: the platform says that the container
// has ended, or the Caddy's address refuses connections or answers with another
// boot, after this Caddy had spoken with that boot at that very address. A
// missing pod, a time-out or a broken stream is no proof. The coordinator
// answers reads with what lies there now (no cache, no replica that lags),
// swaps all or nothing, and each Read and Swap is answered exactly once. A
// driver that gives up answers with an error, or with Unknown, within half a
// lease. An instance's ID is never used again, and an instance that is missing
// from Listed has ended.
//
// # How it is driven
//
// One goroutine owns a Node. It has a mailbox and one timer, set to Node.Next.
// For each event it reads both clocks, calls Step and carries out the outputs
// in their order. None of them may block it: sends go to the queue of a stream,
// and Read and Swap run elsewhere and come back as events. SetSlots is carried
// out at once, and a Used event with the number inside, read after that, is the
// next event.
//
// SetSlots is reserver's Instance.SetSlots, except that 0 means no slot here and
// no limit there. A lowered number ends no request. While Watch is on, a hook
// of the reserver marks the service when a slot was freed and no request took
// it; and always when a request leaves an instance that has more inside than
// slots. The number for Used is read when the event is handled. Late news is
// harmless: it delays a return and never makes one too early.
//
// Demand comes when the number of waiting requests, their oldest, or the number
// in use changes. The Node limits how often it tells the leader. On the leader,
// Sum is the input of the scaling policy, and Confirmed says whether orders may
// go to platforms. Lead starts and stops the control loops, which report
// their ready instances with Listed. To stop an instance the loop lists it as
// Withdrawn and waits for Empty, or for its drain time. Members follow the
// leader's list with Follow, and use Sum for max_waiting and Retry-After.
//
// The transport asks Lease.MayWrite directly before the first byte of a
// request is written. If it says no, nothing is written and the request goes
// back to the front of the queue.
package cluster
