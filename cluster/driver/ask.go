package driver

import (
	"context"
	"fmt"

	"github.com/caddy-usher/usher/cluster/link"
)

// asking is what connections for a question say that they are for. Each has one
// question and its answer: they are for what an operator does, and may be large
// and slow, which the streams may not.
const asking = "question"

// Ask asks another member, and returns its answer. The member is named by its ID.
// It must not be called from a method of Host.
func (d *Driver) Ask(ctx context.Context, member string, question []byte) ([]byte, error) {
	p, ok := d.member(member)
	if !ok {
		return nil, fmt.Errorf("there is no member %s", member)
	}
	conn, err := d.link.Dial(ctx, p.Address, p.ID, asking)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, conn.Close)()
	answer, err := exchange(conn, question)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("asking member %s: %w", member, err)
	}
	return answer, nil
}

func exchange(conn *link.Conn, question []byte) ([]byte, error) {
	if err := sendParts(conn.Send, question); err != nil {
		return nil, err
	}
	return receiveWhole(conn)
}

// answer answers the question of another member.
func (d *Driver) answer(ctx context.Context, conn *link.Conn) {
	question, err := receiveWhole(conn)
	if err != nil {
		return // it has given up
	}
	if err := sendParts(conn.Send, d.c.Answer(ctx, question)); err == nil {
		_, _ = conn.Receive() // the other side closes once it has the answer
	}
}

// receiveWhole returns the next message of a connection.
func receiveWhole(conn *link.Conn) ([]byte, error) {
	var parts joiner
	for {
		frame, err := conn.Receive()
		if err != nil {
			return nil, err
		}
		whole, err := parts.add(frame)
		if whole != nil || err != nil {
			return whole, err
		}
	}
}
