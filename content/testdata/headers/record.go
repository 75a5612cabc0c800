//go:build ignore

// Records what archive/tar makes of headers, and what it makes of its own output when times are clamped.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"strings"
	"time"
)

type Case struct {
	Name, Link, Uname string
	Type              string
	Mode, Size        int64
	Uid, Gid          int
	Mtime, Mnsec      int64
	Major, Minor      int64
	Xattrs            map[string]string
	Format            string
	Sha256, Rewritten string
	Error             string
}

const epoch = 1500000000

func sum(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }

func main() {
	long := strings.Repeat("directory/", 12)
	cases := []Case{
		{Name: "plain", Type: "0", Mode: 0644, Size: 5, Mtime: 1600000000},
		{Name: "dir/", Type: "5", Mode: 0755, Mtime: 1600000000},
		{Name: long + "file", Type: "0", Mode: 0644, Mtime: 1600000000},
		{Name: long + "dir/", Type: "5", Mode: 0755, Mtime: 1600000000},
		{Name: strings.Repeat("n", 100), Type: "0", Mode: 0644, Mtime: 1},
		{Name: strings.Repeat("n", 101), Type: "0", Mode: 0644, Mtime: 1},
		{Name: strings.Repeat("d/", 128) + "x", Type: "0", Mode: 0644, Mtime: 1},
		{Name: strings.Repeat("d/", 200) + "x/", Type: "5", Mode: 0644, Mtime: 1},
		{Name: strings.Repeat("n", 99) + "/" + strings.Repeat("m", 99) + "/", Type: "5", Mode: 0644, Mtime: 1},
		{Name: "käse", Type: "0", Mode: 0644, Mtime: 1},
		{Name: "dir/käse/", Type: "5", Mode: 0755, Mtime: 1},
		{Name: "link", Link: "target", Type: "2", Mode: 0777, Mtime: 1},
		{Name: "link", Link: strings.Repeat("t", 101), Type: "2", Mode: 0777, Mtime: 1},
		{Name: "link", Link: "zürich", Type: "1", Mode: 0644, Mtime: 1},
		{Name: "big", Type: "0", Mode: 06755, Uid: 2097151, Gid: 2097152, Mtime: 1},
		{Name: "old", Type: "0", Mode: 0644, Mtime: -1},
		{Name: "future", Type: "0", Mode: 0644, Mtime: 8589934592},
		{Name: "nano", Type: "0", Mode: 0644, Mtime: 1600000000, Mnsec: 500000000},
		{Name: "nanoold", Type: "0", Mode: 0644, Mtime: -2, Mnsec: 250000000},
		{Name: "dev", Type: "3", Mode: 0666, Major: 1, Minor: 3, Mtime: 1},
		{Name: "blk", Type: "4", Mode: 0660, Major: 259, Minor: 1048575, Mtime: 1},
		{Name: "fifo", Type: "6", Mode: 0600, Mtime: 1},
		{Name: "cap", Type: "0", Mode: 0755, Mtime: 1, Xattrs: map[string]string{"security.capability": "\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
		{Name: "two", Type: "0", Mode: 0755, Mtime: 1, Xattrs: map[string]string{"user.b": "2", "user.a": strings.Repeat("1", 90)}},
		{Name: "user", Type: "0", Mode: 0644, Mtime: 1, Uname: "someone"},
		{Name: "user", Type: "0", Mode: 0644, Mtime: 1, Uname: strings.Repeat("u", 33)},
		{Name: "slash/", Type: "0", Mode: 0644, Mtime: 1},
		{Name: "a/../b/" + strings.Repeat("ü", 3), Type: "0", Mode: 0644, Mtime: 1},
	}
	var out []Case
	for _, format := range []string{"", "PAX", "GNU"} {
		for _, c := range cases {
			if format == "GNU" && len(c.Xattrs) > 0 {
				continue
			}
			c.Format = format
			h := &tar.Header{Name: c.Name, Linkname: c.Link, Uname: c.Uname, Typeflag: c.Type[0], Mode: c.Mode, Size: c.Size, Uid: c.Uid, Gid: c.Gid,
				ModTime: time.Unix(c.Mtime, c.Mnsec), Devmajor: c.Major, Devminor: c.Minor}
			for k, v := range c.Xattrs {
				if h.PAXRecords == nil {
					h.PAXRecords = map[string]string{}
				}
				h.PAXRecords["SCHILY.xattr."+k] = v
			}
			switch format {
			case "PAX":
				h.Format = tar.FormatPAX
			case "GNU":
				h.Format = tar.FormatGNU
			}
			var buf bytes.Buffer
			w := tar.NewWriter(&buf)
			if err := w.WriteHeader(h); err != nil {
				c.Error = "yes"
				out = append(out, c)
				continue
			}
			w.Write(bytes.Repeat([]byte("x"), int(c.Size)))
			w.Close()
			c.Sha256 = sum(buf.Bytes())
			r := tar.NewReader(&buf)
			var second bytes.Buffer
			w = tar.NewWriter(&second)
			for {
				h, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					panic(err)
				}
				limit := time.Unix(epoch, 0)
				if h.ModTime.After(limit) {
					h.ModTime = limit
				}
				if h.AccessTime.After(limit) {
					h.AccessTime = limit
				}
				if err := w.WriteHeader(h); err != nil {
					panic(err)
				}
				io.Copy(w, r)
			}
			w.Close()
			c.Rewritten = sum(second.Bytes())
			out = append(out, c)
		}
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", " ")
	for i := range out {
		hexed := map[string]string{}
		for k, v := range out[i].Xattrs {
			hexed[k] = hex.EncodeToString([]byte(v))
		}
		out[i].Xattrs = hexed
	}
	e.Encode(out)
}
