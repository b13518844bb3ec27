package dag

import "math/bits"

// positions is a sorted set of step positions: a bitmap, with a bitmap over its
// words, and so on up to a single word. With 10,000 steps that is three layers,
// so that adding, removing and finding the next member touch three words at
// most and never allocate.
type positions struct {
	layers [][]uint64
	count  int
}

const wordBits = 6 // 64 positions in a word

func newPositions(n int) positions {
	var p positions
	for {
		n = (n + 1<<wordBits - 1) >> wordBits
		p.layers = append(p.layers, make([]uint64, max(n, 1)))
		if n <= 1 {
			return p
		}
	}
}

// put makes i a member, or none.
func (p *positions) put(i int, member bool) {
	switch had := p.layers[0][i>>wordBits]&bit(i) != 0; {
	case member && !had:
		p.count++
		for _, layer := range p.layers {
			word := &layer[i>>wordBits]
			known := *word != 0
			*word |= bit(i)
			if known {
				return
			}
			i >>= wordBits
		}
	case !member && had:
		p.count--
		for _, layer := range p.layers {
			word := &layer[i>>wordBits]
			if *word &^= bit(i); *word != 0 {
				return
			}
			i >>= wordBits
		}
	}
}

// next is the smallest member that is i or larger, or -1.
func (p *positions) next(i int) int {
	for l, layer := range p.layers {
		if i>>wordBits >= len(layer) {
			return -1
		}
		if rest := layer[i>>wordBits] &^ (bit(i) - 1); rest != 0 {
			i = i&^(1<<wordBits-1) | bits.TrailingZeros64(rest)
			for l--; l >= 0; l-- {
				i = i<<wordBits | bits.TrailingZeros64(p.layers[l][i])
			}
			return i
		}
		i = i>>wordBits + 1
	}
	return -1
}

// first lists up to n members in order.
func (p *positions) first(n int) []int {
	n = min(n, p.count)
	if n <= 0 {
		return nil
	}
	list := make([]int, 0, n)
	for i := p.next(0); i >= 0 && len(list) < n; i = p.next(i + 1) {
		list = append(list, i)
	}
	return list
}

func (p *positions) all() []int { return p.first(p.count) }

func bit(i int) uint64 { return 1 << (i & (1<<wordBits - 1)) }
