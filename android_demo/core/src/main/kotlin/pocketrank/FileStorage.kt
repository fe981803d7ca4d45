package pocketrank

import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.Closeable
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.file.Files
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.nio.file.StandardCopyOption.REPLACE_EXISTING
import java.util.concurrent.ConcurrentHashMap
import java.util.zip.CRC32

/**
 * Events and pack in a folder of the app's own: `events.log`, to which one record an event is appended,
 * `pack.safetensors`, and one file `NAME.fact` a fact, which are put in their places whole. One instance at a time has
 * the folder, by a lock on `events.lock`, until it is closed.
 *
 * A record is its length, a CRC-32 and its bytes. What is no whole record is passed over at the next start, and cut off
 * where it is the last. An event that was added outlives the process; a loss of power may take the newest ones.
 *
 * @throws BadInput the folder cannot be used, another instance has it, or `events.log` is another file.
 */
class FileStorage(private val folder: File) : Storage, Closeable {
    private val held = MemoryStorage()
    private val packFile = File(folder, "pack.safetensors")
    private val logFile = File(folder, "events.log")
    private val path = used { Files.createDirectories(folder.toPath()).toFile().canonicalFile }
    private var lock: RandomAccessFile? = null
    private var log: RandomAccessFile

    init {
        if (OPEN.putIfAbsent(path, this) != null) throw elsewhere()
        try {
            log = used {
                val file = RandomAccessFile(File(folder, "events.lock"), "rw").also { lock = it }
                file.channel.tryLock() ?: throw elsewhere()
                remove("new") // what was cut off before it got its place
                opened()
            }
        } catch (error: Throwable) {
            unlock()
            throw error
        }
    }

    override val events: List<Observed> get() = held.events

    override var pack: ByteArray?
        get() = used { if (packFile.isFile) packFile.readBytes() else null }
        set(content) = put(packFile, content)

    override fun fact(name: String): String? = used { factFile(name).let { if (it.isFile) it.readText() else null } }

    override fun know(name: String, value: String?) = put(factFile(name), value?.toByteArray())

    override fun add(event: Observed) = used {
        val stored = event.copy(arrival = held.lastArrival() + 1)
        val begin = log.filePointer
        try {
            log.write(record(stored))
        } catch (error: IOException) {
            log.seek(begin) // the next record begins where a half one may be, even if that cannot be cut off
            log.setLength(begin)
            throw error
        }
        held.add(stored)
    }

    override fun drop(beforeUs: Long, arrival: Long) = used {
        val before = events.size
        held.drop(beforeUs, arrival)
        if (events.size < before) rewrite()
    }

    override fun clear() = used {
        held.clear()
        remove("safetensors", "fact", "new")
        rewrite()
    }

    override fun close() {
        log.close()
        unlock()
    }

    private fun unlock() {
        lock?.close()
        OPEN.remove(path, this)
    }

    private fun elsewhere() = BadInput("$folder: another storage has it open; close that one, or go on with it")

    private fun remove(vararg kinds: String) {
        for (file in folder.listFiles().orEmpty()) if (file.extension in kinds) Files.delete(file.toPath())
    }

    /** Opens the log behind its last whole record. */
    private fun opened(): RandomAccessFile {
        val file = RandomAccessFile(logFile, "rw")
        val content = ByteArray(Math.toIntExact(file.length())).also(file::readFully)
        var begun = 0
        while (begun < content.size && (content[begun] == NOTHING || (begun < HEAD.size - 1 && content[begun] == HEAD[begun]))) begun++
        if (begun == content.size) {
            file.setLength(0) // new, or power was lost before its head was whole
            file.write(HEAD)
            return file
        }
        if (!content.copyOf(HEAD.size).contentEquals(HEAD)) {
            file.close()
            throw BadInput("$logFile: not a log of events; give another folder, or remove the file")
        }
        val rest = ByteBuffer.wrap(content, HEAD.size, content.size - HEAD.size)
        while (true) held.add(event(rest) ?: break)
        file.setLength(rest.position().toLong())
        file.seek(rest.position().toLong())
        return file
    }

    private fun rewrite() {
        val content = ByteArrayOutputStream()
        content.write(HEAD)
        // An empty record tells how far arrivals got, since an arrival is never given twice.
        content.write(framed(ByteBuffer.allocate(8).putLong(held.lastArrival()).array()))
        val events = held.events.sortedWith { one, other -> one.arrival.compareTo(other.arrival) }
        for (event in events) content.write(record(event))
        replace(logFile, content.toByteArray())
        log.close()
        log = RandomAccessFile(logFile, "rw").apply { seek(length()) }
    }

    private fun factFile(name: String) = File(folder, "$name.fact")

    private fun put(file: File, content: ByteArray?): Unit = used {
        if (content == null) Files.deleteIfExists(file.toPath()) else replace(file, content)
    }

    private fun replace(file: File, content: ByteArray) {
        if (!log.fd.valid()) throw IOException("closed") // another may have it by now
        val draft = File(folder, "${file.name}.new")
        RandomAccessFile(draft, "rw").use {
            it.setLength(0)
            it.write(content)
            it.fd.sync()
        }
        Files.move(draft.toPath(), file.toPath(), ATOMIC_MOVE, REPLACE_EXISTING)
    }

    private fun record(event: Observed): ByteArray {
        val bytes = ByteArrayOutputStream()
        DataOutputStream(bytes).run {
            writeLong(event.arrival)
            writeLong(event.timeUs)
            writeDouble(event.score)
            when (val item = event.item) {
                is ItemId.Number -> {
                    writeByte(NUMBER)
                    writeLong(item.number)
                }
                is ItemId.Text -> {
                    writeByte(TEXT)
                    write(item.text)
                }
            }
            write(event.behavior)
        }
        return framed(bytes.toByteArray())
    }

    private fun framed(bytes: ByteArray): ByteArray =
        ByteBuffer.allocate(8 + bytes.size).putInt(bytes.size).putInt(crc(bytes, 0, bytes.size)).put(bytes).array()

    /** The next whole record's event, and behind it; null, and behind the last whole one, where there is none. */
    private fun event(rest: ByteBuffer): Observed? {
        var begin = rest.position()
        while (rest.limit() - begin >= 8) {
            val size = rest.getInt(begin)
            val end = begin + 8 + size
            if (size < 8 || size > rest.limit() - begin - 8 || crc(rest.array(), begin + 8, size) != rest.getInt(begin + 4)) {
                begin++ // half a record, with whole ones behind it, maybe
                continue
            }
            rest.position(end)
            begin = end
            val reader = DataInputStream(ByteArrayInputStream(rest.array(), end - size, size))
            val arrival = reader.readLong()
            if (size == 8) {
                held.skip(arrival)
                continue
            }
            val timeUs = reader.readLong()
            val score = reader.readDouble()
            val item = if (reader.readByte().toInt() == NUMBER) ItemId.of(reader.readLong()) else ItemId.of(reader.text())
            return Observed(timeUs, item, reader.text(), score, arrival)
        }
        return null
    }

    private fun crc(bytes: ByteArray, from: Int, size: Int): Int = CRC32().apply { update(bytes, from, size) }.value.toInt()

    private fun DataOutputStream.write(text: String) {
        val bytes = text.toByteArray()
        writeInt(bytes.size)
        write(bytes)
    }

    private fun DataInputStream.text(): String = String(ByteArray(readInt()).also(::readFully))

    private fun <T> used(what: () -> T): T = try {
        what()
    } catch (error: IOException) {
        throw BadInput("$folder: cannot be used (${oneLine(error.message)}); check the path, its rights and the disk")
    }

    private companion object {
        /** Of this process: its lock is one for all, and goes as soon as one of them closes the file. */
        val OPEN = ConcurrentHashMap<File, FileStorage>()
        val HEAD = "pocketrank.events/1\n".toByteArray()
        const val NOTHING: Byte = 0
        const val NUMBER = 0
        const val TEXT = 1
    }
}
