package ws

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

const (
	// minProgress is the number of bytes that a client has to accept within Options.WriteWait.
	minProgress = 4 << 10
	// chunk bounds a fragment of a message, in bytes. A write has about two chunks at most. Pings go between writes.
	chunk = 16 << 10
	// maxUnsent bounds the bytes that the system buffers for a client and has not sent yet.
	maxUnsent = 64 << 10
	// For a client that receives nothing, the system usually holds at most about maxUnsent unsent bytes (see limitUnsent)
	// and the bytes in flight. buffered is more than that: if more bytes are written, the client counts as alive.
	buffered = 4 * maxUnsent
)

// Operation codes of RFC 6455.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

// operation is the code of the messages that contain the frames of an encoding.
var operation = [frame.Encodings]byte{frame.JSON: opText, frame.Protobuf: opBinary}

// batch contains the buffers that a writer uses while it runs.
type batch struct {
	frames [][]byte
	bytes  []byte
}

var batches = sync.Pool{New: func() any { return &batch{bytes: make([]byte, 0, 2*chunk+64)} }}

// write writes waiting frames until none wait or the connection ends.
func (c *connection) write() {
	defer c.server.options.Guard.Recover("writer", c.endAfterPanic)
	b := batches.Get().(*batch)
	defer func() {
		clear(b.frames)
		batches.Put(b)
	}()
	for {
		var ending *hub.Reason
		var more bool
		b.frames, ending, more = c.conn.Next(b.frames[:0], chunk)
		if !more {
			return
		}
		if err := c.writeBatch(b); err != nil {
			c.endAfter(err)
			return
		}
		if len(b.frames) == 0 && ending != nil {
			c.endFor(*ending)
			return
		}
	}
}

// writeBatch writes frames, several in one write. It fragments long frames, so that a ping need not wait for their end.
func (c *connection) writeBatch(b *batch) error {
	out := c.appendControls(b.bytes[:0])
	for i := range b.frames {
		text, op := b.frames[i], operation[c.encoding]
		for {
			part := text[:min(chunk, len(text))]
			text = text[len(part):]
			out = append(appendHeader(out, op, len(text) == 0, len(part)), part...)
			if len(out) >= chunk {
				if err := c.send(out); err != nil {
					return err
				}
				out = c.appendControls(out[:0])
			}
			if len(text) == 0 {
				break
			}
			op = opContinuation
		}
	}
	b.bytes = out[:0]
	return c.send(out)
}

// appendHeader appends the header of a WebSocket frame. The header has no mask, because only clients mask frames.
func appendHeader(b []byte, op byte, final bool, length int) []byte {
	if final {
		op |= 0x80
	}
	switch {
	case length < 126:
		return append(b, op, byte(length))
	case length <= 0xFFFF:
		return binary.BigEndian.AppendUint16(append(b, op, 126), uint16(length))
	default:
		return binary.BigEndian.AppendUint64(append(b, op, 127), uint64(length))
	}
}

// send writes bytes. It times out if bytes are left after about WriteWait and the client has accepted fewer than
// minProgress of them in that time. After cut was called, it times out if bytes are left when grace has passed.
func (c *connection) send(b []byte) error {
	c.torn = true
	for len(b) > 0 {
		c.arm()
		n, err := c.net.Write(b)
		b = b[n:]
		if n > 0 && c.unconfirmed.Add(int64(n)) > buffered {
			c.seen.Store(time.Now().UnixNano())
		}
		if err != nil {
			c.armed = time.Time{}
			if !timeout(err) || n < minProgress || c.ending.Load() {
				return err
			}
		}
	}
	c.torn = false
	return nil
}

// arm sets the write deadline, but not for every write: setting the deadline costs more than writing a small frame.
func (c *connection) arm() {
	now, wait := time.Now(), c.server.options.WriteWait
	if c.ending.Load() || now.Sub(c.armed) < min(time.Second, wait/8) {
		return
	}
	c.armed = now
	_ = c.net.SetWriteDeadline(now.Add(wait))
	if c.ending.Load() { // cut was called after the first check
		_ = c.net.SetWriteDeadline(now.Add(grace))
	}
}
