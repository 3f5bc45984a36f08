package session

import (
	"encoding/json"
	"testing"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// Whatever a client sends is a frame or a refusal, and what is taken says the same when it is written down again.
func FuzzReadFrame(f *testing.F) {
	for _, seed := range []string{"", "{", "null", "[]", "7", `"x"`, `{"type":"ping"}`, `{"id":"1","type":"look","data":null}`,
		`{"id":"1","type":"chat.send_message","command_id":"c","data":{"body":"h\u0000i"}}`, `{"id":7,"type":"x"}`,
		`{"type":"x"} {}`, `{"type":"x","tpye":"y"}`, `{"id":"1","id":"2","type":"x"}`, "\xff\xfe", `{"data":[[[[[[1]]]]]]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		frame, err := ReadFrame(text)
		if err != nil {
			if _, ok := refusal.Of(err); !ok {
				t.Fatalf("%q is answered with %v", text, err)
			}
			return
		}
		if frame.Type == "" {
			t.Fatalf("%q was taken without a type", text)
		}
		again, err := json.Marshal(frame)
		if err != nil {
			t.Fatal(err)
		}
		same, err := ReadFrame(again)
		if err != nil || same.ID != frame.ID || same.Type != frame.Type || same.CommandID != frame.CommandID ||
			(same.Data == nil) != (frame.Data == nil) {
			t.Fatalf("%q is %+v, written down %q it is %+v, %v", text, frame, again, same, err)
		}
	})
}

// Whatever a client sends to come back, the accepted values are within their bounds.
func FuzzReadComeback(f *testing.F) {
	for _, seed := range []string{"", "null", "{}", `{"at":"AQ"}`, `{"session":"a b"}`, `{"rooms":["x","x"],"session":"s"}`,
		`{"at":"AQRjaGF0AQAAAAA","rooms":[null]}`, `{"more":1}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, mark, refused := readComeback(data)
		if refused != nil {
			return
		}
		if (c.At == "") != (mark == nil) || len(c.Rooms) > maxLooked || c.Session != "" && !catalog.ValidID(c.Session) {
			t.Fatalf("%q is %+v %v", data, c, mark)
		}
	})
}

func FuzzReadRooms(f *testing.F) {
	for _, seed := range []string{"", "null", "{}", `{"rooms":[]}`, `{"rooms":["presence:bob","presence:bob"]}`, `{"rooms":7}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rooms, refused := readRooms(data)
		if (refused == nil) == (len(rooms) == 0) {
			t.Fatalf("%q is %q, %v", data, rooms, refused)
		}
	})
}
