"use strict";
// The rows as they are kept in this file: unpacked column by column, and put together again as CSV.
const Rows = (() => {
  // Base85 with the letters of Python's, but for three that mean something in HTML.
  const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%.()*+-;,=:?@^_`{|}~";
  const digits = new Uint8Array(128);
  for (let i = 0; i < letters.length; i++) digits[letters.charCodeAt(i)] = i;

  const bytesOf = (text) => {
    const size = Math.floor((text.length * 4) / 5);
    const bytes = new Uint8Array(size + 4);
    for (let from = 0, to = 0; from < text.length; from += 5, to += 4) {
      let word = 0;
      for (let i = 0; i < 5; i++) word = word * 85 + (from + i < text.length ? digits[text.charCodeAt(from + i)] : 84);
      bytes[to] = word >>> 24;
      bytes[to + 1] = (word >>> 16) & 255;
      bytes[to + 2] = (word >>> 8) & 255;
      bytes[to + 3] = word & 255;
    }
    return bytes.subarray(0, size);
  };

  const inflate = async (packed) => {
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  // A column is a byte a row that says whether it is known (only where some are not), then byte planes of the values.
  const column = (bytes, spec, rows, start, expected) => {
    const values = new Array(rows);
    let at = start;
    let known = rows;
    let mask = null;
    if (spec.known !== undefined) {
      mask = bytes.subarray(at, at + rows);
      at += rows;
      known = spec.known;
    }
    const numbers = new Float64Array(known);
    if (spec.raw) {
      const swapped = new Uint8Array(known * 8);
      for (let plane = 0; plane < 8; plane++)
        for (let i = 0; i < known; i++) swapped[i * 8 + plane] = bytes[at + plane * known + i];
      numbers.set(new Float64Array(swapped.buffer));
    } else {
      let factor = 1;
      for (let plane = 0; plane < spec.width; plane++, factor *= 256)
        for (let i = 0, from = at + plane * known; i < known; i++) numbers[i] += bytes[from + i] * factor;
      const scale = 10 ** spec.decimals;
      for (let i = 0, last = 0; i < known; i++) {
        const coded = numbers[i];
        const value = coded % 2 ? -(coded + 1) / 2 : coded / 2;
        last = spec.delta ? last + value : value;
        numbers[i] = (expected ? last + Math.floor(expected(i) * scale + 0.5) : last) / scale;
      }
    }
    for (let row = 0, next = 0; row < rows; row++) values[row] = mask && !mask[row] ? null : numbers[next++];
    return [values, at + known * (spec.raw ? 8 : spec.width)];
  };

  // Cores in use are kept as what differs from CPU seconds divided by time; these columns come before.
  const expectation = (run, columns, name) => {
    const scope = name.replace(/_cpu_usage$/, "");
    const [user, system, times] = [columns[`${scope}_utime`], columns[`${scope}_stime`], columns.timestamp];
    return (row) => {
      const length = row ? times[row] - times[row - 1] : run.interval;
      return length > 0 ? (user[row] + system[row]) / length : 0;
    };
  };

  const unpack = async (run) => {
    const bytes = await inflate(bytesOf(document.getElementById(run.block).textContent));
    const columns = {};
    let at = 0;
    for (const spec of run.columns) {
      const expected = spec.expected ? expectation(run, columns, spec.name) : null;
      [columns[spec.name], at] = column(bytes, spec, run.rows, at, expected);
    }
    return columns;
  };

  // How a collector writes numbers: fractions as short as they can be told apart, and never without a point.
  const text = (value, spec) => {
    if (value === null) return "";
    const plain = spec.whole && Math.abs(value) > 2 ** 53 ? String(BigInt(value)) : String(value);
    return spec.whole || plain.includes(".") || plain.includes("e") ? plain : plain + ".0";
  };

  const csv = (run, columns) => {
    const lines = [run.columns.map((spec) => spec.name).join(",")];
    for (let row = 0; row < run.rows; row++)
      lines.push(run.columns.map((spec) => text(columns[spec.name][row], spec)).join(","));
    return lines.join("\n") + "\n";
  };

  return { unpack, csv };
})();
